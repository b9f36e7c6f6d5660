"""The one function that generates music: from nothing, from a prompt or into a gap, and well-formed.

`generate_music` wraps `model.generate` with what music needs beside it: the token budget, the sliding window, the
grammar and the loop breaker, the stop by seconds, endings, and one forward pass over the prompt for all samples.

Shape letters: B prompts, T tokens.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from transformers import LogitsProcessor

from .control_feedback import ControlFeedback
from .controls import DEFAULT_CONTROLS
from .forgotten_keys import ForgottenKeys
from .grammar import PIANO, MaxSeconds, MusicGrammar
from .infill_grammar import Gap, InfillGrammar
from .performance import NUM_PITCHES, STEPS_PER_SECOND
from .repetition import LoopBreaker

# MAESTRO averages 40 tokens per second, 116 in its busiest half minute: a sample that needs more has gone wrong.
TOKENS_PER_SECOND, SPARE_TOKENS = 160, 500

# Sequences that are decoded together. More give little (3.2 times the tokens per second with 8, 3.9 times with 32),
# and a batch takes as long as its longest sequence.
MAX_BATCH_SIZE = 8

# Options of `generate` that need a cache of their own in place of the one filled with the prompt.
OWN_CACHE = {"assistant_model", "cache", "cache_implementation", "num_beams", "past_key_values", "use_cache"}


def generate_music(
    model,
    tokenizer,
    prompt_ids: np.ndarray | torch.Tensor | Sequence | None = None,
    *,
    seconds: float | None = 30.0,
    num_samples: int = 1,
    ending: bool = False,
    infill: tuple[float, float] | None = None,
    controls: Mapping | None = None,
    grammar: dict | None = None,
    streamer=None,
    should_stop: Callable[[], bool] | None = None,
    max_batch_size: int = MAX_BATCH_SIZE,
    **generate_kwargs,
) -> list[np.ndarray]:
    """Continue a prompt, generate from nothing, or fill a gap.

    Args:
        model: A causal language model over the tokenizer's ids.
        tokenizer: A `MusicTxTokenizer`.
        prompt_ids: The prompt from BOS on, `[T]`; or several prompts, padded on the left, `[B, T]`; None for BOS
            alone. A prompt longer than the model's sliding window is part of the result, but the model sees only its
            end.
        seconds: Seconds of music to generate after the prompt; None to stop at EOS or `max_new_tokens` alone, as for
            encodings whose tokens have no duration.
        num_samples: Continuations of each prompt.
        ending: End the music within a few seconds after `seconds`, rather than cut it there.
        infill: First and last second of a gap in the piece `prompt_ids`, whose music is generated anew; `seconds` does
            not count then. Notes that sound across an edge of the gap are kept.
        controls: What is wanted of the controls, as for `Controls`: `{"density": 6, "composer": "Chopin"}`. Time is
            counted from the end of the prompt, or from the beginning of the gap. Numbers that are given or planned
            are also enforced by `ControlFeedback`. What is left out has its value of `DEFAULT_CONTROLS`: a model that
            knows controls plans its density, except in a gap; `{"density": "off"}` for music without a plan.
        grammar: Options of `MusicGrammar` that differ from `PIANO`; for the Performance encoding only.
        streamer: As for `generate`; with more samples than `max_batch_size`, it sees one batch after the other.
        should_stop: Called after every token; generation ends when it returns True.
        max_batch_size: Sequences that are decoded together.
        **generate_kwargs: As for `generate`, such as `do_sample`, `temperature`, `top_p` or `max_new_tokens`.

    Returns:
        The ids of each sample, `[T]`, prompt included and without padding: the samples of the first prompt, then those
        of the second. If `should_stop` ended the generation, samples that were not begun are missing. With `infill`
        the ids of the whole piece, from BOS to EOS.

    Raises:
        ValueError: An option is out of range, or the encoding does not support it.
    """
    window, gap = getattr(model.config, "sliding_window", None), None
    if infill is not None:
        if prompt_ids is None or (np.ndim(prompt_ids) > 1 and len(prompt_ids) > 1):
            raise ValueError(f"infill {infill} needs one piece as the prompt.")
        if ending:
            raise ValueError(f"infill {infill} and ending: a gap ends where the rest of the piece begins.")
        gap = Gap(np.asarray(prompt_ids).reshape(-1), tokenizer, *infill, window)
        prompt_ids, seconds = gap.prompt, None
    prompt = torch.as_tensor(np.array([tokenizer.bos_token_id]) if prompt_ids is None else prompt_ids)
    prompt = prompt.long().reshape(-1, prompt.shape[-1])  # [B, T]
    window = window or prompt.shape[1]
    before, seen = prompt[:, :-window], prompt[:, -window:].to(model.device)
    length = seen.shape[1]
    inputs = {"input_ids": seen, "attention_mask": (seen != tokenizer.pad_token_id).long()}

    rules, stopping = dict(grammar or {}), list(generate_kwargs.pop("stopping_criteria", None) or ())
    limit = seconds
    if ending:
        if seconds is None:
            raise ValueError("ending needs seconds, after which the music is to end.")
        rules["close_after_seconds"] = seconds
        # No note begins after `seconds`; the last one ends when the grammar ends it, or else when a piano would.
        limit = seconds + ((PIANO | rules)["max_note_seconds"] or PIANO["max_note_seconds"])
    if limit is not None:
        stopping.append(MaxSeconds(tokenizer, limit, length))
        generate_kwargs.setdefault("max_new_tokens", SPARE_TOKENS + math.ceil(TOKENS_PER_SECOND * limit))
    if should_stop is not None:
        stopping.append(lambda ids, scores: torch.full((len(ids),), should_stop(), device=ids.device))
    if gap is None and tokenizer.has_events and tokenizer.attributes:
        controls = DEFAULT_CONTROLS | dict(controls or {})
    if controls:
        rules["controls"] = controls
    if gap is not None:
        most = SPARE_TOKENS + math.ceil(TOKENS_PER_SECOND * (gap.stop - gap.start) / STEPS_PER_SECOND)
        own = _processors(tokenizer, InfillGrammar(tokenizer, gap, most, **PIANO | rules), length, controls)
        generate_kwargs.setdefault("eos_token_id", tokenizer.infill_ids.end)
        # After `most` tokens: the offs of all keys, the events of kept notes, and the time to the end of the gap.
        generate_kwargs.setdefault("max_new_tokens", most + 3 * (NUM_PITCHES + len(gap.kept)) + gap.join)
    else:
        own = piano_logits_processors(tokenizer, before=before.tolist(), prompt_length=length, **rules)
    processors = [*(generate_kwargs.pop("logits_processor", None) or ()), *own]

    # Several samples share one forward pass over the prompt, unless `generate` needs a cache of its own.
    config = generate_kwargs.get("generation_config") or model.generation_config
    settings = {name for name in OWN_CACHE if getattr(config, name, None) not in (None, 1, True)}
    shared = {}
    if num_samples > 1 and length > 1 and not OWN_CACHE & (generate_kwargs.keys() | settings):
        with torch.no_grad():
            filled = {name: tensor[:, :-1] for name, tensor in inputs.items()}
            outputs = model(**filled, use_cache=True, logits_to_keep=1)
        # The name of the cache in this release of Transformers.
        shared = {name: value for name, value in outputs.items() if name in ("cache", "past_key_values")}

    samples = [[] for _ in prompt]
    while len(samples[0]) < num_samples and not (should_stop is not None and should_stop()):
        count = min(max(max_batch_size // len(prompt), 1), num_samples - len(samples[0]))
        caches = {name: copy.deepcopy(cache) for name, cache in shared.items()}
        for cache in caches.values():
            cache.batch_repeat_interleave(count)
        rows = model.generate(
            **inputs,
            **caches,
            num_return_sequences=count,
            logits_processor=processors,
            stopping_criteria=stopping,
            streamer=streamer,
            **generate_kwargs,
        )
        for index, row in enumerate(rows[:, length:].cpu()):
            ids = torch.cat([prompt[index // count], row])
            samples[index // count].append(ids[ids != tokenizer.pad_token_id].numpy())
    pieces = [ids for of_prompt in samples for ids in of_prompt]
    return pieces if gap is None else [gap.fill(ids) for ids in pieces]


def piano_logits_processors(
    tokenizer, *, before: Sequence[Sequence[int]] = ((),), prompt_length: int = 0, **rules
) -> list[LogitsProcessor]:
    """Return the processors that keep music well-formed, within a piano's range, out of loops and to controls.

    Args:
        tokenizer: A `MusicTxTokenizer`.
        before: As for `MusicGrammar`.
        prompt_length: As for `MusicGrammar`.
        **rules: Options of `MusicGrammar` that differ from `PIANO`.

    Returns:
        What `generate` takes as `logits_processor`. An empty list for encodings other than the paper's, which have no
        grammar here: MidiTok decodes any of their ids to whole notes.

    Raises:
        ValueError: An option is out of range, or was given for an encoding without a grammar.
    """
    if tokenizer.has_events:
        grammar = MusicGrammar(tokenizer, before=before, prompt_length=prompt_length, **PIANO | rules)
        return _processors(tokenizer, grammar, prompt_length, rules.get("controls"))
    if rules:
        raise ValueError(f"{', '.join(rules)}: only the untrained Performance encoding has a grammar.")
    return []


def _processors(tokenizer, grammar: MusicGrammar, prompt_length: int, controls: Mapping | None):
    feedback = [ControlFeedback(tokenizer, controls, prompt_length)] if controls else []
    # The grammar after what shifts scores, for it gives a control the probability of all events that it allows.
    return [*feedback, ForgottenKeys(tokenizer, grammar), grammar, LoopBreaker(tokenizer)]


def first_seconds(ids: np.ndarray, tokenizer, seconds: float) -> np.ndarray:
    """Return the ids of the first seconds of a piece, `[T]`.

    Args:
        ids: The ids of the piece, `[T]`.
        tokenizer: A `MusicTxTokenizer`.
        seconds: How much of it to keep; events at this very time are kept.
    """
    # Half a step more: sums of hundredths of a second are not exact.
    return ids[tokenizer.token_seconds[ids].cumsum() < seconds + 0.5 / STEPS_PER_SECOND]
