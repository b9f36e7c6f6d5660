"""`pipeline("midi-generation", model=...)`: music in, music out, by Transformers' own verb."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LogitsProcessor, Pipeline
from transformers.dynamic_module_utils import custom_object_save

from .grammar import PIANO, MaxSeconds, MusicGrammar
from .repetition import LoopBreaker

TASK = "midi-generation"

# A second of MAESTRO is 40 tokens; a model that needs four times as many has lost its way.
TOKENS_PER_SECOND, SPARE_TOKENS = 160, 500


class MidiGenerationPipeline(Pipeline):
    """Continues music, or makes music of its own; every note has its beginning and its end.

        midi = pipeline("midi-generation", model="user/name", trust_remote_code=True)
        midi("prelude.mid", seconds=30).dump_midi("continued.mid")

    `save_pretrained` writes the model, the tokenizer and the code of all three, so that this works wherever
    Transformers, MidiTok and symusic are installed.
    """

    _load_tokenizer = True
    _pipeline_calls_generate = True

    def __call__(self, music=None, **kwargs):
        """Continue a piece.

        Args:
            music: A path, the bytes of a MIDI file, a `symusic.Score`, None for nothing at all, or a list of these.
            seconds: How much music is made, the prompt not counted; 30 if not given.
            prompt_seconds: How much of the piece is continued; all of it if not given. What is longer than the model's
                window stays in the music, but the model sees only its end.
            ending: Whether the music comes to an end after its seconds, rather than being cut.
            rules: Options of `MusicGrammar` that differ from those of a piano; it knows the paper's encoding alone.
            output: "score" for a `symusic.Score`; "bytes" for those of a MIDI file; or a folder, where the music is
                written to a new file whose path is returned. "score" if not given.
            **kwargs: What `generate` takes, such as `temperature` or `num_return_sequences`; and the library's own
                `batch_size`.

        Returns:
            The piece with its continuation; a list of them for a list, or for several return sequences.

        Raises:
            ValueError: The music cannot be read, or an option is out of range.
        """
        return super().__call__(music, **kwargs)

    def _sanitize_parameters(
        self, seconds=None, prompt_seconds=None, ending=None, rules=None, output=None, **generate_kwargs
    ):
        if seconds is not None and not 0 < seconds < math.inf:
            raise ValueError(f"seconds ({seconds}) must be positive.")
        forward = {"seconds": seconds, "ending": ending, "rules": rules}
        given = [
            {name: value for name, value in parameters.items() if value is not None}
            for parameters in ({"prompt_seconds": prompt_seconds}, forward, {"output": output})
        ]
        given[1] |= generate_kwargs
        return tuple(given)

    def preprocess(self, music, prompt_seconds=math.inf):
        """Read the prompt.

        Args:
            music: One piece as `__call__` takes it.
            prompt_seconds: Seconds of it to continue.

        Returns:
            The `input_ids` and `attention_mask` that the model sees and the whole prompt as `music`, `[1, T]` each.
        """
        ids = np.array([self.tokenizer.bos_token_id] if music is None else self.tokenizer.encode(music))
        # The sum of many hundredths strays from the grid, by less than half a step.
        ids = ids[self.tokenizer.token_seconds[ids].cumsum() < prompt_seconds + 0.005]
        ids = torch.from_numpy(ids)[None]
        seen = ids[:, -(self.model.config.sliding_window or ids.shape[1]) :]
        return {"input_ids": seen, "attention_mask": torch.ones_like(seen), "music": ids}

    def _forward(self, inputs, seconds=30.0, ending=False, rules=None, **generate_kwargs):
        ids, length = inputs["input_ids"], inputs["input_ids"].shape[1]
        # What the model does not see, padded on the left like what it does.
        before = inputs["music"][:, :-length]
        rules = rules or {}
        stopping = list(generate_kwargs.pop("stopping_criteria", ()))
        if ending:
            rules = {**rules, "close_after_seconds": seconds}
        else:
            stopping.append(MaxSeconds(self.tokenizer, seconds, length))
        manners = piano_logits_processors(self.tokenizer, before=before.tolist(), prompt_length=length, **rules)
        generate_kwargs = self._prepare_generate_kwargs(
            {"max_new_tokens": SPARE_TOKENS + math.ceil(TOKENS_PER_SECOND * seconds)} | generate_kwargs
        )
        rows = self.model.generate(
            input_ids=ids,
            attention_mask=inputs["attention_mask"],
            logits_processor=[*generate_kwargs.pop("logits_processor", ()), *manners],
            stopping_criteria=stopping,
            **generate_kwargs,
        )
        rows = torch.cat([before.repeat_interleave(len(rows) // len(ids), dim=0), rows], dim=1)
        return {"music": rows.view(len(ids), -1, rows.shape[1])}

    def postprocess(self, outputs, output="score"):
        """Write the music down.

        Args:
            outputs: The ids of one prompt's sequences as `music`, `[1, number of return sequences, T]`.
            output: What is returned.

        Returns:
            One piece, or a list if the sequences are several.
        """
        pieces = [_written(self.tokenizer.to_score(ids), output) for ids in outputs["music"][0]]
        return pieces if len(pieces) > 1 else pieces[0]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Save the model, the tokenizer and the code of all three.

        Args:
            save_directory: A folder, made if need be.
            **kwargs: What the model's `save_pretrained` takes.
        """
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        kind = type(self)
        self.model.config.custom_pipelines = {
            TASK: {"impl": f"{kind.__module__.split('.')[-1]}.{kind.__name__}", "pt": ["AutoModelForCausalLM"]}
        }
        custom_object_save(self, save_directory)
        self.model.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory)


def piano_logits_processors(
    tokenizer, *, before: Sequence[Sequence[int]] = ((),), prompt_length: int = 0, **rules
) -> list[LogitsProcessor]:
    """Keep what a model plays well-formed, within a piano's bounds and out of loops.

    Args:
        tokenizer: A tokenizer of this house.
        before: As for `MusicGrammar`.
        prompt_length: As for `MusicGrammar`.
        **rules: Options of `MusicGrammar` that differ from `PIANO`.

    Returns:
        The processors that `generate` takes as `logits_processor`. None for encodings other than the paper's, which
        no grammar knows: whatever ids they are given, MidiTok makes whole notes of them.

    Raises:
        ValueError: An option is out of range, or there is one for an encoding without a grammar.
    """
    if tokenizer.has_events:
        grammar = MusicGrammar(tokenizer, before=before, prompt_length=prompt_length, **PIANO | rules)
        return [grammar, LoopBreaker(tokenizer)]
    if rules:
        raise ValueError(f"{', '.join(rules)}: there is a grammar for the Performance encoding, untrained, alone.")
    return []


def _written(score, output: str | os.PathLike):
    """Give a score in the form that is asked for; see `MidiGenerationPipeline.__call__`."""
    if output == "score":
        return score
    midi = score.dumps_midi()
    if output == "bytes":
        return midi
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / f"{TASK}-{number}.mid"
        try:
            path.open("xb").write(midi)
            return path
        except FileExistsError:
            number += 1
