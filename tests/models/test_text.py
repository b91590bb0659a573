"""The character model: the decoder in the loss, and what it writes with its layers one step after the other."""

import pytest
import torch

import bptt
from bptt.data import Vocabulary
from bptt.models import CharModel, write


def test_the_decoder_in_the_loss_is_the_decoder_before_it():
    """Losses and gradients of the pair that is trained, against those of the model and the plain loss."""
    torch.manual_seed(0)
    model = CharModel(29, "gru", 12)
    ids = torch.randint(29, (31, 4))
    stream, state = [bptt.Chunk(ids[:-1], ids[1:])], model.initial_state(4)
    found = []
    for pair in ((model, model.loss), model.trained()):
        model.zero_grad()
        updates = bptt.unroll(*pair, stream, strategy=bptt.TruncatedBPTT(8), initial_state=state)
        losses = torch.stack([update.loss for update in updates])
        found.append([losses, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == 1 + len(list(model.parameters()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_what_is_written_is_the_likeliest_of_the_whole_text_each_time(cell):
    """Step by step, against one call of the model on all that was written so far."""
    torch.manual_seed(1)
    vocabulary, model = Vocabulary("abcdef"), CharModel(6, cell, 8, layers=2)
    text = "fade"
    for _ in range(9):
        with torch.no_grad():
            scores, _ = model(vocabulary.encode(text)[:, None])
        text += vocabulary.characters[int(scores[-1, 0].argmax())]
    assert "fade" + "".join(write(model.stepping(), vocabulary, "fade", length=9, temperature=0)) == text


def test_a_cell_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="cell='lsmt': must be one of rnn, gru, lstm"):
        CharModel(3, "lsmt", 4)


def test_a_folder_that_holds_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"not a run folder with weights \(no weights.safetensors\)"):
        CharModel.load(tmp_path)
