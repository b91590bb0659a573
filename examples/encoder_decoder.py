"""An encoder and a decoder: `backward` takes the decoder's gradient under a budget and passes it on to the encoder.

Task: read a sequence of symbols, then output it backwards. The encoder makes the decoder's initial state, which carries
a graph; its cotangent goes through the encoder once, at the end. The result is that of autograd over the whole graph.
"""

import torch
from torch import Tensor, nn

import bptt

SYMBOLS, LENGTH, BATCH, HIDDEN = 6, 5, 64, 48


class Decoder(nn.Module):
    """A recurrence (inputs, state) -> (logits, state)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS + 1, HIDDEN)
        self.gru = nn.GRU(HIDDEN, HIDDEN)
        self.readout = nn.Linear(HIDDEN, SYMBOLS)

    def forward(self, symbols: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self.gru(self.embedding(symbols), state)
        return self.readout(outputs), state


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, HIDDEN)
        self.gru = nn.GRU(HIDDEN, HIDDEN)

    def forward(self, symbols: Tensor) -> Tensor:
        return self.gru(self.embedding(symbols))[1]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Symbols, what the decoder reads (the symbol that it should just have output), and what it should output."""
    symbols = torch.randint(SYMBOLS, (LENGTH, BATCH))
    targets = symbols.flip(0)
    begin = torch.full((1, BATCH), SYMBOLS)
    return symbols, torch.cat([begin, targets[:-1]]), targets


def main() -> None:
    torch.manual_seed(0)
    encoder, decoder = Encoder(), Decoder()
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    loss = bptt.per_step(nn.CrossEntropyLoss())
    memory = bptt.Checkpoints(slots=2, segment=2)

    symbols, inputs, targets = batch()
    logits, _ = decoder(inputs, encoder(symbols))
    nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    exact = [p.grad for p in parameters]
    optimizer.zero_grad()
    bptt.backward(decoder, loss, (inputs, targets), encoder(symbols), memory=memory)
    torch.testing.assert_close([p.grad for p in parameters], exact, rtol=1e-4, atol=1e-6)
    print("Encoder and decoder have the gradient that autograd gives.")

    for number in range(201):
        optimizer.zero_grad()
        symbols, inputs, targets = batch()
        update = bptt.backward(decoder, loss, (inputs, targets), encoder(symbols), memory=memory)
        optimizer.step()
        if number % 50 == 0:
            print(f"update {number:3}: cross entropy {update.mean_loss.item():.3f}")


if __name__ == "__main__":
    main()
