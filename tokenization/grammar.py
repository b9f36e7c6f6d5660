"""Which token may follow which: the Performance encoding as a LogitsProcessor, and a stop by seconds of music.

All that a rule asks of the past is when each token was last heard. A key sounds if its NoteOn was heard after its
NoteOff, the velocity is the one heard last, a note's age is the time since its NoteOn. So a sequence is summed up by
one row of stamps, a stamp for each token of the vocabulary: a new token sets one, a whole prompt is one scatter.

Shape letters: B batch, T tokens, V vocabulary, P keys.
"""

import torch
from transformers import LogitsProcessor, StoppingCriteria

# A stamp is a position with the time in the bits above it, if a rule asks for ages: it sorts as the position does.
TIME_BITS = 32

# More steps than there will ever be.
FOREVER = 1 << TIME_BITS

# So many newest tokens tell whether a sequence goes on from the last call. Few, so that a token costs the same after
# hours; enough, for two sequences of one length that agree in them all would have to differ in a key untouched since.
RECALL_TOKENS = 1024

# What a piano and its players do, for `MusicGrammar`: all of MAESTRO's keys, and the length of 99.9% of its notes as
# they sound, pedal and all. A key that a model forgets to release would be lost to the rest of the piece.
PIANO = {"pitch_range": (21, 108), "max_note_seconds": 10.0}


def shift_steps(tokenizer):
    """Count time in whole steps, so that an hour of music sums without drift.

    Args:
        tokenizer: The tokenizer, for its `token_seconds`.

    Returns:
        The steps by which each id advances time, `[V]`, and the steps in a second.
    """
    seconds = torch.as_tensor(tokenizer.token_seconds, dtype=torch.float64)
    step = seconds[seconds > 0].min()
    return (seconds / step).round().long(), 1 / step.item()


class MusicGrammar(LogitsProcessor):
    """Masks every token that would make the music malformed.

    What it lets through is what the tokenizer itself could have written: a NoteOff only of a sounding key, a NoteOn
    only of a silent one; within one step NoteOffs, then NoteOns, each by ascending pitch; a Velocity only if it is not
    the current one and a NoteOn can follow; no TimeShift right after one that was not the longest; BOS and PAD never;
    EOS only after the NoteOff that leaves silence. A piece begins with a Velocity.

    A prompt may be any slice of music: what it leaves open is taken as it stands, its hanging NoteOffs do no harm, and
    keys not struck in it count as silent. Rows may be padded on the left and reordered between calls (beam search).

    Args:
        tokenizer: A tokenizer of the Performance encoding.
        max_polyphony: Most keys that may sound at once.
        max_note_seconds: Longest time that a key may sound.
        pitch_range: Lowest and highest key that may be struck, both included.
        close_after_seconds: Seconds of music, the prompt not counted, after which no note begins, and EOS follows as
            soon as the sounding ones have ended. Set `max_note_seconds` to bound that, too.
        prompt_length: Length of the prompt in tokens with its padding, `input_ids.shape[1]`, for
            `close_after_seconds`.

    Raises:
        ValueError: If the vocabulary is not the plain Performance encoding, or an option is out of range.
    """

    # There, rows of different ages share one sequence.
    supports_continuous_batching = False

    def __init__(
        self,
        tokenizer,
        *,
        max_polyphony: int | None = None,
        max_note_seconds: float | None = None,
        pitch_range: tuple[int, int] | None = None,
        close_after_seconds: float | None = None,
        prompt_length: int = 0,
    ):
        vocabulary = tokenizer.get_vocab()
        self._steps, steps_per_second = shift_steps(tokenizer)
        self._pad, self._bos, self._eos = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
        self._on, self._off, self._shift, self._velocity = (
            _span(vocabulary, kind) for kind in ("NoteOn", "NoteOff", "TimeShift", "Velocity")
        )

        low, high = pitch_range or (0, 127)
        if not 0 <= low <= high <= 127:
            raise ValueError(f"pitch_range {pitch_range} must be two keys within 0..127, the lower one first.")
        if max_polyphony is not None and max_polyphony < 1:
            raise ValueError(f"max_polyphony ({max_polyphony}) must be at least 1; leave it out for no limit.")
        if max_note_seconds is not None and max_note_seconds * steps_per_second < 1:
            raise ValueError(f"max_note_seconds ({max_note_seconds}) must be at least a step, {1 / steps_per_second}.")
        self._max_polyphony = max_polyphony
        self._max_note_steps = max_note_seconds and round(max_note_seconds * steps_per_second)
        self._close_after_steps = close_after_seconds and round(close_after_seconds * steps_per_second)
        self._prompt_length = prompt_length

        self._follows, self._order, self._is_velocity = self._tables(vocabulary, low, high)
        self._length = None

    def _tables(self, vocabulary, low, high):
        """Write down the rules that need no memory.

        Returns:
            Two bool tensors `[V, V]`, the earlier token in the rows: whether a token may come right after another, and
            whether it may still come in a step in which that other one was the last. One `[V]`: what is a Velocity.
        """
        size = len(self._steps)
        pitch = torch.full((size,), -1)
        for token, i in vocabulary.items():
            kind, _, value = token.partition("_")
            if kind in ("NoteOn", "NoteOff"):
                pitch[i] = int(value)
        on, off, shift, velocity = torch.zeros(4, size, dtype=torch.bool)
        on[self._on] = off[self._off] = shift[self._shift] = velocity[self._velocity] = True
        longest = self._steps == self._steps.max()

        # Rows: the earlier token, columns: the later one.
        ascends = pitch[:, None] < pitch
        order = ~(on[:, None] & on | off[:, None] & off) | ascends
        order &= ~(on[:, None] & off)
        order &= ~on | (low <= pitch) & (pitch <= high)

        follows = (on | off | shift | velocity).repeat(size, 1)
        follows[off, self._eos] = True
        follows[velocity] = on
        follows[shift & ~longest] &= ~shift
        follows[self._bos] = velocity
        follows[[self._eos, self._pad]] = torch.arange(size) == self._pad
        return follows, order, velocity

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Mask the scores of the next token.

        Args:
            input_ids: The sequences so far, `[B, T]`.
            scores: Scores of the next token, `[B, V]` (or wider, if the model's vocabulary is padded).

        Returns:
            The scores, minus infinity where the grammar forbids a token.
        """
        self._hear(input_ids)
        token, previous = input_ids[:, -1], input_ids[:, max(input_ids.shape[1] - 2, 0)]
        allowed = self._allowed(self._heard, self._time, self._left, token, previous)
        # Only a prompt leads into a dead end, as by a Velocity after the top key; the shortest TimeShift leads out.
        allowed[:, self._shift.start].logical_or_(~allowed.any(1))
        if scores.shape[1] > allowed.shape[1]:
            allowed = torch.nn.functional.pad(allowed, (0, scores.shape[1] - allowed.shape[1]))
        return torch.where(allowed, scores, -torch.inf)

    def _hear(self, ids):
        """Bring the stamps up to date: by the newest token if the others were heard before, else from the start."""
        B, T = ids.shape
        if self._follows.device != ids.device:
            self._follows, self._order, self._is_velocity, self._steps = (
                table.to(ids.device) for table in (self._follows, self._order, self._is_velocity, self._steps)
            )
        # On an accelerator the comparison would hold the host up until the model's forward is done, while hearing
        # everything anew takes as many kernels as hearing one token.
        goes_on = (
            ids.device.type == "cpu"
            and self._length == T - 1
            and torch.equal(ids[:, -RECALL_TOKENS - 1 : -1], self._recent)
        )
        start = T - 1 if goes_on else 0
        if not goes_on:
            self._heard = self._steps.new_zeros(B, len(self._steps))
            self._time = self._steps.new_zeros(B)
            self._left = self._steps.new_full((B,), self._close_after_steps or 0)
        # A copy: the caller may write on in the same memory.
        self._length, self._recent = T, ids[:, -RECALL_TOKENS:].clone()

        new = ids[:, start:]
        stamp = torch.arange(start + 1, T + 1, device=ids.device).expand_as(new)
        if self._max_note_steps is not None:
            time = self._time[:, None] + self._steps[new].cumsum(1)
            stamp = (time << TIME_BITS) + stamp
            self._time = time[:, -1]
        self._heard.scatter_reduce_(1, new, stamp, "amax")
        if self._close_after_steps is not None:
            self._left -= self._steps[ids[:, max(start, self._prompt_length) :]].sum(1)

    def _allowed(self, heard, time, left, token, previous):
        """Apply every rule to the next token.

        Args:
            heard: Stamp of each token's last occurrence, 0 if there was none, `[B, V]`.
            time: Steps since the beginning, `[B]`.
            left: Steps until the closing phase, `[B]`.
            token: The newest token, `[B]`.
            previous: The one before it, `[B]`.

        Returns:
            Whether each token may come next, bool, `[B, V]`.
        """
        # A Velocity does not move within the step: the note before it still does the counting.
        allowed = self._order[torch.where(self._is_velocity[token], previous, token)]
        on, off, velocity = allowed[:, self._on], allowed[:, self._off], allowed[:, self._velocity]

        sounding = heard[:, self._on] > heard[:, self._off]  # [B, P]
        sounds = sounding.any(1)
        on.masked_fill_(sounding, False)
        off &= sounding
        allowed[:, self._eos].masked_fill_(sounds, False)

        if self._max_polyphony is not None:
            on &= sounding.sum(1, keepdim=True) < self._max_polyphony
        if self._max_note_steps is not None:
            age = time[:, None] - (heard[:, self._on] >> TIME_BITS)
            rest = torch.where(sounding, self._max_note_steps - age, FOREVER)  # [B, P]
            overdue = rest <= 0
            # Overdue keys are released before anything else happens, and no later key before them.
            off &= overdue.cumsum(1) <= overdue
            on &= ~overdue.any(1, keepdim=True)
            allowed[:, self._shift] &= self._steps[self._shift] <= rest.amin(1, keepdim=True)
        if self._close_after_steps is not None:
            closing = left <= 0
            on &= ~closing[:, None]
            # No rest reaches into the closing phase: a piece ends with its last NoteOff.
            allowed[:, self._shift] &= (self._steps[self._shift] < left[:, None]) | sounds[:, None]

        # A Velocity says something if it is news and a NoteOn can follow.
        stamps = heard[:, self._velocity]
        velocity &= (stamps < stamps.amax(1, keepdim=True).clamp(min=1)) & on.any(1, keepdim=True)

        allowed &= self._follows[token]
        if self._close_after_steps is not None:
            # But a prompt may have brought it there.
            allowed[:, self._eos].logical_or_(closing & ~sounds & ~allowed.any(1))
        return allowed

    def violations(self, ids) -> list[int]:
        """Find the tokens of a finished sequence that the grammar would not have let through.

        A sequence that does not begin with BOS is a slice of music: a key whose first event in it is a NoteOff was
        sounding before. The closing phase is not asked for.

        Args:
            ids: One sequence, `[T]`, padding at its ends allowed.

        Returns:
            Their positions, ascending; empty if the sequence is well-formed.
        """
        ids = torch.asarray(ids, dtype=torch.long, device=self._steps.device, copy=True)
        music = (ids != self._pad).nonzero().flatten().tolist()
        if len(music) < 2:
            return []
        first, ids = music[0], ids[music[0] : music[-1] + 1]
        positions = torch.arange(len(ids), device=ids.device)
        time = self._steps[ids].cumsum(0)
        stamp = (time << TIME_BITS) + positions + 1
        previous = torch.cat([ids[:1], ids[:-1]])

        before = torch.zeros_like(self._steps)
        if ids[0] != self._bos:
            begins = torch.full_like(self._steps, len(ids)).scatter_reduce(0, ids, positions, "amin")
            before[self._on] = (begins[self._off] < begins[self._on]).long()

        # The rules see the positions as they see the rows of a batch, some at a time to bound the memory.
        wrong = []
        for part in positions[:-1].split(1024):
            heard = before.repeat(len(part), 1)
            heard.scatter_(1, ids[part, None], stamp[part, None])
            heard = heard.cummax(0).values
            before = heard[-1]
            allowed = self._allowed(heard, time[part], torch.full_like(part, FOREVER), ids[part], previous[part])
            wrong += (part + 1)[~allowed.gather(1, ids[part + 1, None])[:, 0]].tolist()
        return [first + i for i in wrong]


def _span(vocabulary, kind):
    """Find the ids of one kind of token.

    Args:
        vocabulary: Ids by token.
        kind: What its tokens begin with.

    Returns:
        The slice of the vocabulary that they fill.

    Raises:
        ValueError: If there are none, or something else lies between them.
    """
    ids = sorted(i for token, i in vocabulary.items() if token.startswith(f"{kind}_"))
    if not ids or ids[-1] - ids[0] + 1 != len(ids):
        raise ValueError(
            f"The vocabulary's {len(ids)} {kind} tokens must follow each other; "
            "the grammar needs a tokenizer of the Performance encoding."
        )
    return slice(ids[0], ids[-1] + 1)


class MaxSeconds(StoppingCriteria):
    """Stops each sequence after so many seconds of music, the prompt not counted.

    Rows of a batch stop apart; `generate()` pads the ones that are done, given an EOS token in the generation config.

    Args:
        tokenizer: The tokenizer, for its `token_seconds`.
        seconds: Seconds of music to generate.
        prompt_length: Length of the prompt in tokens with its padding, `input_ids.shape[1]`.
    """

    def __init__(self, tokenizer, seconds: float, prompt_length: int):
        self._steps, steps_per_second = shift_steps(tokenizer)
        self._limit = round(seconds * steps_per_second)
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        """Count the music so far.

        Args:
            input_ids: The sequences so far, `[B, T]`.
            scores: Not used.
            **kwargs: Not used.

        Returns:
            Whether each sequence is done, `[B]`.
        """
        self._steps = self._steps.to(input_ids.device)
        new = input_ids[:, self._prompt_length :]
        # index_select takes a third of the time of plain indexing.
        return self._steps.index_select(0, new.flatten()).view(new.shape).sum(1) >= self._limit
