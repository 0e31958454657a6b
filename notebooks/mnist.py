"""Small encoders and autoencoders of MNIST digits, for the notebooks: spaces that differ by architecture and by seed."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import torch
from setting import DATA
from torch import nn
from torch.nn import functional

BATCH = 100


def digits(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, labels and images (n, 1, 28, 28) in [0, 1] of the first n digits; their order is a shuffle."""
    table = pq.read_table(DATA / "mnist" / "digits.parquet").slice(0, n)
    pixels = np.array(table["pixels"].to_pylist(), np.float32).reshape(-1, 1, 28, 28) / 255
    return np.array(table["id"].to_pylist(), object), np.array(table["label"].to_pylist()), pixels


class Vit(nn.Module):
    """A vision transformer of two layers over 16 patches."""

    def __init__(self, dim: int, width: int = 64) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 7, 7)
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(width, dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.out(self.layers(self.patches(images).flatten(2).mT + self.places).mean(1))


def encoder(kind: str, dim: int) -> nn.Module:
    """An untrained encoder: ``cnn``, ``mlp`` or ``vit``."""
    if kind == "vit":
        return Vit(dim)
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, dim))
    convolutions = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 49, dim))


def decoder(kind: str, dim: int) -> nn.Module:
    """An untrained decoder of images: ``cnn`` or ``mlp``."""
    if kind == "mlp":
        layers = [nn.Linear(dim, 256), nn.ReLU(), nn.Linear(256, 784), nn.Sigmoid(), nn.Unflatten(1, (1, 28, 28))]
        return nn.Sequential(*layers)
    layers = [nn.Linear(dim, 32 * 49), nn.ReLU(), nn.Unflatten(1, (32, 7, 7))]
    layers += [nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Sigmoid()]
    return nn.Sequential(*layers)


def _train(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, loss, epochs: int) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            loss(module(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    module.eval()


def train_classifier(kind: str, dim: int, seed: int, images: np.ndarray, labels: np.ndarray, epochs: int) -> nn.Module:
    """An encoder trained with a linear head to distinguish the digits; the head is discarded."""
    torch.manual_seed(seed)
    body = encoder(kind, dim)
    classes = torch.tensor(np.unique(labels, return_inverse=True)[1])
    _train(nn.Sequential(body, nn.ReLU(), nn.Linear(dim, 10)), torch.tensor(images), classes, functional.cross_entropy, epochs)
    return body


def train_autoencoder(kind: str, dim: int, seed: int, images: np.ndarray, epochs: int) -> tuple[nn.Module, nn.Module]:
    """An encoder and a decoder trained to reconstruct the digits."""
    torch.manual_seed(seed)
    both = nn.Sequential(encoder(kind, dim), decoder(kind, dim))
    rows = torch.tensor(images)
    _train(both, rows, rows, functional.mse_loss, epochs)
    return both[0], both[1]


def train_decoder(kind: str, vectors: np.ndarray, images: np.ndarray, seed: int, epochs: int) -> nn.Module:
    """A decoder of images alone, for vectors of a fixed space."""
    torch.manual_seed(seed)
    module = decoder(kind, vectors.shape[1])
    _train(module, torch.tensor(vectors), torch.tensor(images), functional.mse_loss, epochs)
    return module


@torch.no_grad()
def run(module: nn.Module, rows: np.ndarray) -> np.ndarray:
    """What a trained module makes of rows."""
    return torch.cat([module(part) for part in torch.tensor(rows).split(1000)]).numpy()
