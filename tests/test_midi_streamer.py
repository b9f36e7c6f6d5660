"""Streamed notes are the notes of the finished file, and each leaves as soon as it has ended."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenization import MusicTxTokenizer
from tokenization.midi_streamer import MidiStreamer, StreamedEvent, StreamedNote

TOKENIZER = MusicTxTokenizer()
IDS = {token.removesuffix("_None"): i for token, i in TOKENIZER.get_vocab().items()}
V = len(TOKENIZER)


def ids(music: str) -> list[int]:
    """The ids of tokens written one after the other."""
    return [IDS[token] for token in music.split()]


def arrive(streamer: MidiStreamer, sequence, prompt_length: int):
    """Pass a sequence to the streamer as `generate` does: the prompt, then token by token."""
    sequence = torch.as_tensor(sequence)
    streamer.put(sequence[None, :prompt_length])
    for i in sequence[prompt_length:]:
        streamer.put(i[None])
    streamer.end()


def stream(sequence, prompt_length: int = 1, **options) -> list[StreamedNote]:
    """The notes that leave."""
    notes = []
    arrive(MidiStreamer(TOKENIZER, notes.append, **options), sequence, prompt_length)
    return notes


def stream_events(sequence, prompt_length: int = 1, **options) -> list[StreamedEvent]:
    """The events that leave."""
    events = []
    arrive(MidiStreamer(TOKENIZER, on_event=events.append, **options), sequence, prompt_length)
    return events


def written(sequence) -> list[StreamedNote]:
    """The notes of the finished score, in the order in which they began."""
    (track,) = TOKENIZER.to_score(sequence).tracks
    return sorted(StreamedNote(n.time / 1000, n.duration / 1000, n.pitch, n.velocity) for n in track.notes)


@pytest.mark.parametrize(
    "music",
    [
        "BOS Velocity_62 NoteOn_60 TimeShift_57 NoteOff_60 EOS",
        # A key struck again without NoteOff, also within its step.
        "BOS Velocity_62 NoteOn_60 TimeShift_5 Velocity_66 NoteOn_60 TimeShift_100 TimeShift_7 NoteOff_60",
        "BOS Velocity_62 NoteOn_60 NoteOn_60 TimeShift_5 NoteOff_60",
        # No time between NoteOn and NoteOff.
        "BOS Velocity_62 NoteOn_60 NoteOff_60 NoteOn_64 TimeShift_9 NoteOff_64",
        # Notes that hang at the end, one of them struck at the very end.
        "BOS Velocity_62 NoteOn_60 NoteOn_64 TimeShift_5 NoteOff_64 TimeShift_100 NoteOn_50",
        # NoteOffs without a note, a note without a velocity, silence before it.
        "NoteOff_60 TimeShift_8 NoteOff_61 NoteOn_60 TimeShift_5 NoteOff_60 NoteOff_60",
        "BOS",
    ],
)
@pytest.mark.parametrize("prompt_length", [1, 4])
def test_streamed_notes_are_the_notes_of_the_score(music, prompt_length):
    assert sorted(stream(ids(music), prompt_length)) == written(ids(music))


def test_streamed_notes_are_the_notes_of_the_score_in_real_pieces_and_in_noise(make_score):
    rng = np.random.default_rng(0)
    pieces = [TOKENIZER(make_score(seed))["input_ids"] for seed in range(5)]
    slices = [piece[100:400] for piece in pieces]
    noise = [rng.integers(0, V, 1000).tolist() for _ in range(5)]
    for sequence in [*pieces, *slices, *noise]:
        notes = stream(sequence, prompt_length=50)
        assert len(notes) > 10
        assert sorted(notes) == written(sequence)


def test_a_note_leaves_with_its_note_off():
    notes = []
    streamer = MidiStreamer(TOKENIZER, notes.append)
    streamer.put(torch.tensor([ids("BOS Velocity_62 NoteOn_60 NoteOn_64 TimeShift_50")]))
    assert notes == []
    streamer.put(torch.tensor(ids("NoteOff_64")))
    assert notes == [(0.0, 0.5, 64, 62)]
    # Several tokens at once, as assisted decoding hands them over.
    streamer.put(torch.tensor([ids("TimeShift_25 NoteOff_60")]))
    assert notes[1:] == [(0.0, 0.75, 60, 62)]


def test_an_event_leaves_with_its_token():
    events = []
    streamer = MidiStreamer(TOKENIZER, on_event=events.append)
    streamer.put(torch.tensor([ids("BOS Velocity_62")]))
    for token, event in (
        ("NoteOn_60", (0.0, 60, 62)),
        ("TimeShift_50", None),
        ("Velocity_66", None),
        ("NoteOff_60", (0.5, 60, 0)),
        ("NoteOff_60", None),
        ("NoteOn_64", (0.5, 64, 66)),
    ):
        streamer.put(torch.tensor(ids(token)))
        assert ([event] if event else []) == events
        events.clear()
    streamer.put(torch.tensor(ids("TimeShift_25")))
    assert streamer.seconds == 0.75
    streamer.end()
    assert events == [(0.75, 64, 0)]


def test_events_pair_up_to_the_notes(make_score):
    rng = np.random.default_rng(0)
    piece = TOKENIZER(make_score(3))["input_ids"]
    for sequence in (piece, piece[100:400], rng.integers(0, V, 1000).tolist()):
        for options in ({}, {"skip_prompt": True}):
            down, notes = {}, []
            for seconds, pitch, velocity in stream_events(sequence, prompt_length=50, **options):
                if velocity:
                    assert pitch not in down
                    down[pitch] = (seconds, velocity)
                else:
                    start, velocity = down.pop(pitch)
                    notes.append((start, round(seconds - start, 2), pitch, velocity))
            assert down == {}
            assert len(notes) > 10
            assert notes == stream(sequence, prompt_length=50, **options)


def test_the_prompt_can_be_left_out_and_time_still_counts_from_its_beginning():
    music = ids(
        "BOS Velocity_62 NoteOn_60 NoteOn_64 TimeShift_50 NoteOff_60 TimeShift_50 NoteOn_72 TimeShift_5 NoteOff_64"
    )
    assert stream(music, prompt_length=6, skip_prompt=True) == [(1.0, 0.05, 72, 62)]
    assert stream(music, prompt_length=6)[0] == (0.0, 0.5, 60, 62)


def test_a_streamer_serves_one_sequence_after_another():
    notes = []
    streamer = MidiStreamer(TOKENIZER, notes.append, skip_prompt=True)
    for _ in range(2):
        streamer.put(torch.tensor([ids("BOS Velocity_2 NoteOn_60 TimeShift_50")]))
        streamer.put(torch.tensor(ids("NoteOn_64")))
        streamer.put(torch.tensor(ids("TimeShift_50")))
        streamer.end()
    assert notes == [(0.5, 0.5, 64, 2)] * 2


@pytest.mark.parametrize("value", [torch.tensor([[1], [1]]), torch.tensor([1, 1])])
def test_a_batch_is_refused(value):
    with pytest.raises(ValueError, match="one sequence, not 2"):
        MidiStreamer(TOKENIZER, print).put(value)


def test_generate_streams_the_notes_that_it_returns():
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=V, **size, pad_token_id=0, bos_token_id=1, eos_token_id=2)).eval()
    notes = []
    streamer = MidiStreamer(TOKENIZER, notes.append)
    prompt = torch.tensor([ids("BOS Velocity_62 NoteOn_60 TimeShift_50")])
    (row,) = model.generate(prompt, do_sample=True, max_new_tokens=200, min_new_tokens=200, streamer=streamer)
    assert len(notes) > 10
    assert sorted(notes) == written(row)
