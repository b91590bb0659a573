"""`explicit_state`: what is no state is refused in one line, and what changes late is found."""

import pytest
import torch
from torch import nn

import bptt
from support import oracle
from support.cases import square
from support.spiking import IN, OUT, Buffered, Spiking

F64 = torch.float64
XS, YS = torch.linspace(-1, 2, 13 * 3 * IN, dtype=F64).reshape(13, 3, IN), torch.ones(13, 3, OUT, dtype=F64)


class Late(nn.Module):
    """Something that acts at every fifth call."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls, self.slow = nn.Linear(IN, OUT, dtype=F64), 0, torch.ones(OUT, dtype=F64)

    def forward(self, x):
        self.calls += 1
        if self.calls % 5 == 0:
            self.slow = 0.5 * self.slow + self.inner(x).mean(0)
        return self.inner(x) * self.slow


def test_what_changes_late_is_named_once_and_then_part_of_the_state():
    net = Late()
    model = bptt.scan(bptt.explicit_state(net))
    with pytest.raises(
        ValueError, match=r"attribute slow of Late changed for the first time.*found to be calls"
    ) as told:
        model(XS, None)
    assert "\n" not in str(told.value)
    outputs, state = model(XS, None)
    assert sorted(state) == ["calls", "slow"]
    oracle.assert_close(outputs, torch.stack([net(x) for x in XS]), 0.0)


def refused(forward, **attributes):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in attributes.items():
                setattr(self, name, value)

    Odd.forward = forward
    return Odd()


def grows(self, x):
    self.seen.append(x)
    return x


def speaks(self, x):
    self.said += "!"
    return x


def keeps_an_object(self, x):
    self.found = Spiking if self.found is None else self.found
    return x


def shares(self, x):
    self.one += 1
    return x


ONE = torch.zeros(2)
ODD = {
    "grows": (grows, {"seen": []}, "attribute seen of Odd grows"),
    "says": (speaks, {"said": ""}, "attribute said of Odd changes from call to call and holds a str"),
    "object": (keeps_an_object, {"found": None}, "attribute found of Odd changes at the first call and holds a type"),
    "shares": (
        shares,
        {"one": ONE, "two": ONE[:]},
        "attribute one of Odd is written to and shares its memory with two",
    ),
}


@pytest.mark.parametrize(("forward", "attributes", "told"), ODD.values(), ids=ODD)
def test_what_is_no_state_is_refused_by_name(forward, attributes, told):
    with pytest.raises(ValueError, match=told) as caught:
        bptt.explicit_state(refused(forward, **attributes))(torch.zeros(2))
    assert "\n" not in str(caught.value)


def test_bad_arguments():
    for wrong, told in ((len, "module must be"), (nn.Linear, "the class Linear"), (nn.Bilinear(1, 1, 1), "Bilinear")):
        with pytest.raises(TypeError, match=told):
            bptt.explicit_state(wrong)
    step = bptt.explicit_state(Spiking())
    for state, got in ((torch.zeros(2), "Tensor"), ({"mem": torch.zeros(2)}, "of mem:"), ({}, "of nothing:")):
        with pytest.raises(ValueError, match=rf"a dict of lif1.mem, lif2.mem, not.*{got}"):
            step(XS[0], state)
    lazy = bptt.explicit_state(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="call it once"):
        lazy(torch.zeros(2, 2))


def test_the_refusal_of_a_hidden_state_names_the_remedy():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Spiking(Buffered)

        def forward(self, x, state):
            return self.net(x), state + 1

    with pytest.raises(ValueError, match=r"bptt.explicit_state\(module\)"):
        bptt.backward(bptt.scan(Both()), square, (XS, YS), torch.zeros(1, dtype=F64), memory=bptt.Checkpoints(2, 3))
