"""What programs that rewrite models find in a fused layer: torch.fx, torch.jit.script, quantisation."""

import warnings
from typing import Any

from torch import nn
from torch.fx import Proxy

BACK = "bptt.nn.convert(model, back=True) gives torch.nn's layers back"


class Rewritten(nn.Module):
    """What torch.jit.script and torch.ao.quantization ask of a module, answered with one line."""

    mode: str
    torchdynamo_force_dynamic = True  # else torch.export(strict=True) of torch 2.8 can't trace the layer

    def __prepare_scriptable__(self) -> Any:
        """Asked by torch.jit.script, whose layer would replace this one in the model itself."""
        raise TypeError(f"torch.jit.script can't take bptt.nn.{type(self).__name__}: {BACK}, to be scripted.")

    @property
    def qconfig(self) -> Any:
        """How torch.ao.quantization is to quantise the layer: not at all."""
        if "qconfig" not in self.__dict__:
            raise AttributeError("qconfig")
        return self.__dict__["qconfig"]

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        if self.mode in ("GRU", "LSTM"):  # those of torch.nn that it quantises; by their very type
            name = f"bptt.nn.{type(self).__name__}"
            said = f"torch.ao.quantization leaves {name} in floating point: {BACK}, to be quantised."
            if value is not None:
                raise TypeError(said)
            warnings.warn(said, stacklevel=2)
        self.__dict__["qconfig"] = value

    @qconfig.deleter
    def qconfig(self) -> None:
        self.__dict__.pop("qconfig", None)


def recorded(layer: nn.Module, input: Proxy, **keywords: Any) -> Any:
    """The call as one node of the graph that torch.fx traces, as one of torch.nn's layers is."""
    tracer: Any = input.tracer
    path = tracer.path_of_module(layer)
    if not path:
        name = type(layer).__name__
        raise TypeError(f"torch.fx can't trace into bptt.nn.{name}, nor into torch.nn's: trace a module that has it.")
    named = {name: value for name, value in keywords.items() if value is not None}
    return tracer.create_proxy("call_module", path, (input,), named)
