"""The loop breaker ends loops and leaves the repetitions of real performances alone."""

import pytest
import torch

from tokenization import MusicTxTokenizer
from tokenization.repetition import MAX_LAG, LoopBreaker

TOKENIZER = MusicTxTokenizer()
IDS = TOKENIZER.get_vocab()
V = len(TOKENIZER)


def tune(keys, shift=10) -> list[int]:
    """The ids of keys struck one after the other."""
    tokens = ["BOS_None", "Velocity_62"]
    for key in keys:
        tokens += [f"NoteOn_{key}", f"TimeShift_{shift}", f"NoteOff_{key}"]
    return [IDS[token] for token in tokens]


def forbidden(breaker, *tunes) -> list[set[str]]:
    """The tokens that are out of reach, for each tune."""
    lowered = breaker(torch.tensor(tunes), torch.zeros(len(tunes), V)) < -1000
    return [set(TOKENIZER.convert_ids_to_tokens(row.nonzero().flatten().tolist())) for row in lowered]


@pytest.mark.parametrize("figure", [[60], [60, 62], [60, 64, 67, 64, 72], [*range(30, 94)]], ids=len)
def test_a_figure_may_go_on_for_so_many_notes_and_no_longer(figure):
    loop = figure * 200
    for more in (19, 20, 21):
        keys = loop[: len(figure) + more]
        expected = {f"NoteOn_{key}" for key in figure} if more >= 20 else set()
        assert forbidden(LoopBreaker(TOKENIZER, 20), tune(keys)) == [expected]


def test_timing_and_touch_do_not_hide_a_loop():
    ids = tune([60, 64, 67] * 20)
    for i in range(3, len(ids), 3):
        ids[i] += i % 7
    assert forbidden(LoopBreaker(TOKENIZER, 20), ids) == [{"NoteOn_60", "NoteOn_64", "NoteOn_67"}]


def test_figures_longer_than_the_longest_lag_and_music_without_a_loop_are_left_alone():
    torch.manual_seed(0)
    figure = torch.randint(40, 80, (MAX_LAG + 1,)).tolist()
    assert forbidden(LoopBreaker(TOKENIZER, 20), tune(figure * 5)) == [set()]
    scores = torch.randn(1, V)
    assert torch.equal(LoopBreaker(TOKENIZER)(torch.tensor([tune([60, 62] * 40)]), scores), scores)


def test_a_slip_does_not_set_a_loop_free():
    loop = [60, 64, 67] * 20
    slip = [*loop[:45], 61, *loop[46:]]
    # It takes a quarter off 42, and again 3, 6, ... notes later off the counts of lags that then miss it.
    assert forbidden(LoopBreaker(TOKENIZER, 50), tune(loop[:52])) == [set()]
    assert forbidden(LoopBreaker(TOKENIZER, 50), tune(loop[:53])) == [{"NoteOn_60", "NoteOn_64", "NoteOn_67"}]
    assert forbidden(LoopBreaker(TOKENIZER, 50), tune(slip)) == [set()]
    assert "NoteOn_64" in forbidden(LoopBreaker(TOKENIZER, 50), tune([*slip, *loop[:20]]))[0]
    # Found, it stays forbidden, slip and all.
    found = forbidden(LoopBreaker(TOKENIZER, 50), tune([*loop, 61, 64, 67]))
    assert found == [{"NoteOn_61", "NoteOn_64", "NoteOn_67"}]


def test_other_music_sets_a_loop_free():
    loop, other = [60, 62] * 30, [50, 52, 54, 56, 58, 65, 67, 69]
    for notes in range(len(other)):
        assert forbidden(LoopBreaker(TOKENIZER, 50), tune([*loop, *other[:notes]])) != [set()]
    assert forbidden(LoopBreaker(TOKENIZER, 50), tune([*loop, *other])) == [set()]
    assert forbidden(LoopBreaker(TOKENIZER, 50), tune([*loop, *other, *loop[:40]])) == [set()]


def test_rows_are_judged_apart_wherever_they_go():
    loop, scale = tune([60, 62] * 20), tune(range(40, 80))
    assert forbidden(LoopBreaker(TOKENIZER, 20), loop, scale) == [{"NoteOn_60", "NoteOn_62"}, set()]
    breaker = LoopBreaker(TOKENIZER, 20)
    for t in range(60, len(loop)):
        rows = (loop[:t], scale[:t]) if t % 3 else (scale[:t], loop[:t])
        assert forbidden(breaker, *rows) == forbidden(LoopBreaker(TOKENIZER, 20), *rows)


def test_the_only_note_left_is_not_taken():
    scores = torch.full((1, V), -torch.inf)
    scores[0, IDS["NoteOn_60"]] = 1.0
    lowered = LoopBreaker(TOKENIZER, 20)(torch.tensor([tune([60, 62] * 20)]), scores)
    assert lowered.softmax(-1)[0, IDS["NoteOn_60"]] == 1


def test_a_bound_below_one_note_is_refused():
    with pytest.raises(ValueError, match=r"max_repeated_notes \(0\)"):
        LoopBreaker(TOKENIZER, 0)
