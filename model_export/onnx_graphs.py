"""Exports a torch module to an ONNX graph with the names of the contract (service/core/graphs.py)."""

import logging
import warnings
from typing import Any

import onnx
import torch
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
