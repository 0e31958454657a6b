"""Models on top of a space. `open_decoder` finds the format."""

from __future__ import annotations

from embridge.decoders.base import Decoded, Decoder, Kind
from embridge.decoders.files import open_decoder, register_decoder, save_decoder
from embridge.decoders.linear import LinearHead
from embridge.decoders.stream import decode

__all__ = ["Decoded", "Decoder", "Kind", "LinearHead", "decode", "open_decoder", "register_decoder", "save_decoder"]
