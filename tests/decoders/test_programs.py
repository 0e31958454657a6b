"""What torch and ONNX programs may do: listed operators, no state, no chance, bounded memory and time, one file."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from sklearn.ensemble import RandomForestClassifier

import embridge as eb
from embridge.decoders import onnx_audit
from embridge.decoders.torch_operators import TENSOR_OPERATORS, is_tensor_operator
from embridge.errors import DecoderError, UnreadableFileError
from tests.decoders.support import SPACE, P, edited, exported, labeled, onnx_of, packed, rows

# torch


@pytest.mark.parametrize(
    "target",
    ["aten.save.default", "aten.from_file.default", "aten._save_parameter.default", "aten.empty.memory_format",
     "aten.rand.default", "aten.bernoulli.default", "aten._unsafe_index.Tensor", "aten.set_.source_Storage",
     "aten.add.out", "aten.add.str", "aten.slice.str", "aten.add.nothing", "aten.nothing.default",
     "prims.device_put.default", "higher_order.cond", "higher_order.while_loop", "mylib.op.default",
     "aten.resize_.default", "_operator.pow", "_operator.lshift", "math.factorial", "torch.load", "aten.add", "print"],
)  # fmt: skip
def test_operators_that_are_not_listed_need_trust(target):
    assert not is_tensor_operator(target)
    assert not is_tensor_operator(f"torch.ops.{target}")


def test_every_listed_operator_is_one_of_torch_and_takes_tensors():
    for name in TENSOR_OPERATORS:
        overloads = getattr(torch.ops.aten, name).overloads()
        assert any(is_tensor_operator(f"torch.ops.aten.{name}.{overload}") for overload in overloads), name
        for overload in overloads:
            if is_tensor_operator(f"torch.ops.aten.{name}.{overload}"):
                schema = getattr(getattr(torch.ops.aten, name), overload)._schema
                assert not any(kind in str(schema) for kind in ("Generator", "Storage", "Stream", "Dict", "Dimname")), schema


def opened(module, path, dynamic=None, **options):
    torch.export.save(exported(module, dynamic), path)
    return eb.open_decoder(path, space=SPACE, **options)


class Function(torch.nn.Module):
    def __init__(self, function, **buffers):
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x):
        return self.function(self, x)


def test_a_program_that_would_write_a_file_is_refused(tmp_path, parts):
    def save(found):
        node = found["graph_module"]["graph"]["nodes"][0]
        node["target"] = "torch.ops.aten.save.default"
        node["inputs"][1:] = [{"name": "filename", "arg": {"as_string": str(tmp_path / "leak")}, "kind": 1}]

    with pytest.raises(DecoderError, match=r"not trusted: torch\.ops\.aten\.save\.default"):
        eb.open_decoder(packed(parts, tmp_path / "d.pt2", **edited(parts, save)), space=SPACE)
    assert not (tmp_path / "leak").exists()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda self, x: torch.rand_like(x) + x, "not trusted: torch.ops.aten.rand_like"),
        (lambda self, x: torch.nn.functional.dropout(x, 0.5, training=True), "training mode"),
        (lambda self, x: x + self.state.add_(1), r"changes its own weights"),
        (lambda self, x: x + torch.zeros(1 << 20, 1 << 12).sum(), "more than 2 GiB in one step"),
        (lambda self, x: x + torch.ones(20_000, 9_000).matmul(torch.ones(9_000, 20_000)).sum(), "operations"),
    ],
    ids=["random", "dropout", "state", "memory", "time"],
)
def test_programs_that_are_random_stateful_or_too_costly_are_refused(tmp_path, function, message):
    with pytest.raises(DecoderError, match=message):
        opened(Function(function, state=torch.zeros(P)), tmp_path / "d.pt2")


def test_a_batch_that_no_decoder_needs_is_refused(tmp_path, parts):
    def wide(found):
        found["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0] = {"as_int": 10**9}

    with pytest.raises(DecoderError, match="needs 1,000,000,000 rows at a time"):
        eb.open_decoder(packed(parts, tmp_path / "d.pt2", **edited(parts, wide)), space=SPACE)


def test_zeros_of_any_size_are_not_made(tmp_path, parts):
    part = "data/weights/model_weights_config.json"

    def large(config):
        config["config"]["layers.0.weight"]["tensor_meta"]["sizes"] = [{"as_int": 1 << 40}]

    changed = edited(parts, large, part) | {"data/weights/weight_0": b""}
    with pytest.raises(UnreadableFileError, match="has no data"):
        eb.open_decoder(packed(parts, tmp_path / "d.pt2", **changed), space=SPACE)


def test_a_program_whose_parts_do_not_go_together_is_one_sentence(tmp_path, parts):
    part = "data/weights/model_weights_config.json"

    def turned(config):
        config["config"]["layers.0.weight"]["tensor_meta"]["sizes"] = [{"as_int": P}, {"as_int": 8}]

    path = packed(parts, tmp_path / "d.pt2", **edited(parts, turned, part))
    command = [
        sys.executable,
        "-c",
        "from embridge.cli.main import main; main()",
        "decoder",
        "register",
        str(path),
        "--space",
        "taught",
        "--no-catalog",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "d.pt2" in done.stderr
    assert "Traceback" not in done.stderr


def test_in_place_operators_and_conditions_on_rows_pass(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(P, 4), torch.nn.ReLU(inplace=True), torch.nn.Dropout(), torch.nn.Linear(4, 2))
    assert opened(net, tmp_path / "a.pt2").decode(rows(9)).output.shape == (9, 2)
    near = Function(lambda self, x: torch.cdist(x, self.points), points=torch.zeros(3, P))
    found = opened(near, tmp_path / "b.pt2", ({0: torch.export.Dim.AUTO},))  # torch adds: at most 25 rows
    assert np.allclose(found.decode(rows(60)).output, np.linalg.norm(rows(60), axis=1)[:, None], atol=1e-5)
    halves = Function(lambda self, x: x.reshape(-1, 2, P).sum(1).repeat_interleave(2, 0))
    with pytest.raises(DecoderError, match="conditions on the sizes of its input"):
        opened(halves, tmp_path / "c.pt2", ({0: torch.export.Dim.AUTO},))


# ONNX


def program(nodes, outputs=("y",), opset="", **graph):
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", P])]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    domains = [helper.make_opsetid("", 17), *([helper.make_opsetid(opset, 1)] if opset else [])]
    return helper.make_model(helper.make_graph(nodes, "g", given, made, **graph), opset_imports=domains, ir_version=8)


def looping(count=None):
    """A program of a loop that ends after `count` rounds, or never."""
    value = helper.make_tensor("value", TensorProto.BOOL, [], [True])
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["more"], value=value), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [helper.make_tensor_value_info(n, t, []) for n, t in (("i", TensorProto.INT64), ("c", TensorProto.BOOL))]
        + [helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("more", TensorProto.BOOL, []), helper.make_tensor_value_info("w", TensorProto.FLOAT, None)],
    )
    constants = [
        helper.make_tensor("limit", TensorProto.INT64, [], [count or (1 << 62)]),
        helper.make_tensor("go", TensorProto.BOOL, [], [True]),
    ]
    return program([helper.make_node("Loop", ["limit", "go", "x"], ["y"], body=body)], initializer=constants)


def refused(model, path, message, **options):
    path.write_bytes(model.SerializeToString())
    with pytest.raises((DecoderError, UnreadableFileError), match=message):
        eb.open_decoder(path, space=SPACE, **options)


def test_an_endless_loop_is_refused_and_ended_where_it_is_trusted(tmp_path, monkeypatch):
    refused(looping(), tmp_path / "a.onnx", "may never end or are not ONNX's own: Loop")
    monkeypatch.setattr(onnx_audit, "PROBE_SECONDS", 2)
    refused(looping(), tmp_path / "b.onnx", r"b\.onnx.* did not load and run within 2 s", trusted=["Loop"])


def test_a_loop_that_ends_can_be_trusted(tmp_path):
    (tmp_path / "a.onnx").write_bytes(looping(3).SerializeToString())
    found = eb.open_decoder(tmp_path / "a.onnx", space=SPACE, trusted=["Loop"])
    assert np.allclose(found.decode(rows(5)).output, rows(5))


def test_tensors_in_other_files_are_refused_wherever_they_are(tmp_path):
    (tmp_path / "secret").write_bytes(b"\0" * 4 * P)
    outside = helper.make_tensor("w", TensorProto.FLOAT, [P], np.zeros(P))
    outside.ClearField("float_data")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="secret")
    add = helper.make_node("Add", ["x", "w"], ["y"])
    refused(program([add], initializer=[outside]), tmp_path / "a.onnx", "tensors in other files")
    refused(program([helper.make_node("Constant", [], ["w"], value=outside), add]), tmp_path / "b.onnx", "tensors in other files")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["z"], value=outside)],
        "b",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [P])],
    )
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    chosen = helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch)
    refused(program([yes, chosen, add]), tmp_path / "c.onnx", "tensors in other files")
    inside = program([helper.make_node("Shift", ["x"], ["y"], domain="mine")], opset="mine")
    constant = helper.make_node("Constant", [], ["w"], value=outside)
    opsets = [helper.make_opsetid("", 17)]
    inside.functions.append(helper.make_function("mine", "Shift", ["x"], ["y"], [constant, add], opsets))
    refused(inside, tmp_path / "d.onnx", "tensors in other files")


def test_operators_of_other_domains_are_refused_and_functions_of_the_file_pass(tmp_path):
    foreign = program([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], opset="com.microsoft")
    refused(foreign, tmp_path / "a.onnx", r"com\.microsoft\.Gelu.*--trust com\.microsoft\.Gelu")
    assert eb.open_decoder(tmp_path / "a.onnx", space=SPACE, trusted=["com.microsoft.Gelu"]).decode(rows(3)).output.shape == (3, P)
    own = program([helper.make_node("Twice", ["x"], ["y"], domain="mine")], opset="mine")
    body = [helper.make_node("Add", ["x", "x"], ["y"])]
    own.functions.append(helper.make_function("mine", "Twice", ["x"], ["y"], body, [helper.make_opsetid("", 17)]))
    (tmp_path / "b.onnx").write_bytes(own.SerializeToString())
    assert np.allclose(eb.open_decoder(tmp_path / "b.onnx", space=SPACE).decode(rows(3)).output, 2 * rows(3))


def test_a_program_that_takes_any_memory_or_ends_its_process_is_an_error(tmp_path, monkeypatch):
    size = helper.make_tensor("size", TensorProto.INT64, [1], [1 << 40])
    nodes = [helper.make_node("ConstantOfShape", ["size"], ["z"]), helper.make_node("ReduceSum", ["z"], ["s"], keepdims=0)]
    refused(program([*nodes, helper.make_node("Add", ["x", "s"], ["y"])], initializer=[size]), tmp_path / "a.onnx", r"a\.onnx")
    monkeypatch.setattr(onnx_audit, "_CHECK_RUN", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    refused(program([helper.make_node("Relu", ["x"], ["y"])]), tmp_path / "b.onnx", r"b\.onnx.* ends the process .*signal 11")


def test_metadata_of_an_onnx_program_are_read_strictly(tmp_path):
    model = program([helper.make_node("Relu", ["x"], ["y"])])
    for text in (
        "[" * 100_000,
        '{"name": "taught", "dim": Infinity, "metric": "dot", "normalized": false}',
        '{"name": 1}',
        "NaN",
        "{",
        '"x"',
    ):
        del model.metadata_props[:]
        model.metadata_props.add(key="embridge.space", value=text)
        refused(model, tmp_path / "a.onnx", r"a\.onnx")
    model.metadata_props.add(key="embridge.space", value=json.dumps(SPACE.to_dict()))
    refused(model, tmp_path / "a.onnx", "repeat a key")


def test_trees_in_onnx_decode_as_scikit_learn(tmp_path):
    x, y = labeled()
    forest = RandomForestClassifier(5, max_depth=3, random_state=0).fit(x, y)
    found = eb.open_decoder(onnx_of(forest, tmp_path / "a.onnx", zipmap=False), space=SPACE).decode(x)
    assert found.prediction.tolist() == forest.predict(x).tolist()


def test_a_module_in_the_working_folder_is_not_imported(tmp_path):
    (tmp_path / "a.onnx").write_bytes(program([helper.make_node("Relu", ["x"], ["y"])]).SerializeToString())
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "numpy.py").write_text("import os\nos.mkdir('boom')\n")
    code = "import sys, embridge as eb; eb.open_decoder(sys.argv[1], space='taught')"
    subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path / "a.onnx")], cwd=folder, check=True, env=dict(os.environ))
    assert not (folder / "boom").exists()
