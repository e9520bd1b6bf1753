"""Exports a torch module to an ONNX graph with the names of the contract (service/core/graphs.py)."""

import logging
import warnings
from typing import Any

import onnx
import torch
from onnxscript import opset18
from torch import nn

from service.core.graphs import GraphSpec

OPSET = 20


def to_onnx(
    module: nn.Module, args: tuple[Any, ...], *, inputs: list[str], outputs: list[str], dynamic_shapes: Any
) -> onnx.ModelProto:
    """Export `module`, traced on `args`.

    Dynamic sizes must be 2 or more in `args`, because the exporter takes 0 and 1 for constants. The
    exporter's notes about the source files are removed. They hold paths of this machine, and equal weights
    must give equal files.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter warns about its own internals
            program = torch.onnx.export(
                module.eval(),
                args,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic_shapes,
                input_names=inputs,
                output_names=outputs,
                custom_translation_table={torch.ops.aten.div.Tensor_mode: _quotient},
                verbose=False,
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None  # it is None only if the export failed, and that raises
    model = program.model_proto
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


def _quotient(dividend: Any, divisor: Any, rounding_mode: str | None = None) -> Any:
    """Integers divided as in ONNX, which cuts off the fraction. The exporter would go by way of floats, which
    are wrong above 2**24 and take ten nodes.
    """
    assert rounding_mode == "trunc", "no other is exported"
    assert dividend.dtype.is_integer(), "floats are divided without a rounding mode"
    return opset18.Div(dividend, opset18.CastLike(divisor, dividend))


def name_dimensions(model: onnx.ModelProto, graph: GraphSpec) -> onnx.ModelProto:
    """Name the dimensions of inputs and outputs as the contract does. Changes `model` in place and returns
    it.
    """
    for values, tensors in ((model.graph.input, graph.inputs), (model.graph.output, graph.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            for dim, size in zip(value.type.tensor_type.shape.dim, tensor.shape, strict=True):
                if isinstance(size, str):
                    dim.dim_param = size
                else:
                    dim.dim_value = size
    return model
