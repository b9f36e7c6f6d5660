"""`pipeline("midi-generation", model=...)`: a piece in, the piece with its continuation or a new middle out."""

import math
import os
from pathlib import Path

import numpy as np
import torch
from transformers import Pipeline

from .music_generation import first_seconds, generate_music

TASK = "midi-generation"

# The entry of config.json by which `pipeline` finds the class below in a model's folder.
CUSTOM_PIPELINES = {TASK: {"impl": "pipeline_music_tx.MidiGenerationPipeline", "pt": ["AutoModelForCausalLM"]}}


# The options of `generate_music` that are none of `generate`.
OPTIONS = ("seconds", "ending", "infill", "controls", "grammar")


class MidiGenerationPipeline(Pipeline):
    """Continues a piece, generates one from nothing, or fills a gap; see `generate_music`.

        midi = pipeline("midi-generation", model="user/name", trust_remote_code=True)
        midi("prelude.mid", seconds=30).dump_midi("continued.mid")
        midi("prelude.mid", infill=(12, 18)).dump_midi("with_six_new_seconds.mid")

    `save_pretrained` writes the model, the tokenizer and the code of all three, so that this works wherever
    Transformers, MidiTok and symusic are installed.
    """

    _load_tokenizer = True
    _pipeline_calls_generate = True

    def __call__(self, music=None, **kwargs):
        """Continue a piece.

        Args:
            music: A path, the bytes of a MIDI file, a `symusic.Score`, None to generate from nothing, or a list of
                these.
            seconds: Seconds of music to generate after the prompt; 30 if not given.
            prompt_seconds: Seconds of the piece to use as the prompt; all of it if not given.
            ending: End the music within a few seconds after `seconds`, rather than cut it there.
            infill: First and last second of a gap in the piece, which is generated anew.
            controls: What is wanted of density, loudness, note length and composer, as for `generate_music`.
            rules: Options of `MusicGrammar` that differ from `PIANO`; for the Performance encoding only.
            output: "score" for a `symusic.Score`, "bytes" for the bytes of a MIDI file, or a folder in which a new
                file is written and its path returned; "score" if not given.
            **kwargs: What `generate` takes, such as `temperature` or `num_return_sequences`, and the pipeline's
                `batch_size`.

        Returns:
            The piece with its continuation, or with its gap filled; a list of them for a list of pieces or several
            return sequences.

        Raises:
            ValueError: The music cannot be read, or an option is out of range.
        """
        return super().__call__(music, **kwargs)

    def _sanitize_parameters(
        self,
        seconds=None,
        prompt_seconds=None,
        ending=None,
        infill=None,
        controls=None,
        rules=None,
        output=None,
        **generate_kwargs,
    ):
        if seconds is not None and not 0 < seconds < math.inf:
            raise ValueError(f"seconds ({seconds}) must be positive.")
        forward = {"seconds": seconds, "ending": ending, "infill": infill, "controls": controls, "grammar": rules}
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
            prompt_seconds: Seconds of it to use as the prompt.

        Returns:
            The prompt as `input_ids`, `[1, T]`.
        """
        ids = np.array([self.tokenizer.bos_token_id] if music is None else self.tokenizer.encode(music))
        return {"input_ids": torch.from_numpy(first_seconds(ids, self.tokenizer, prompt_seconds))[None]}

    def _forward(self, inputs, num_return_sequences=1, **kwargs):
        own = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        samples = generate_music(
            self.model,
            self.tokenizer,
            inputs["input_ids"],
            num_samples=num_return_sequences,
            **own,
            **self._prepare_generate_kwargs(kwargs),
        )
        # One row per prompt, so that the library can take the batch apart: [B, samples per prompt, T].
        rows = torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(ids) for ids in samples], batch_first=True, padding_value=self.tokenizer.pad_token_id
        )
        return {"ids": rows.view(len(inputs["input_ids"]), num_return_sequences, -1)}

    def postprocess(self, outputs, output="score"):
        """Decode the ids.

        Args:
            outputs: The `ids` of one prompt's samples, padded, `[1, number of return sequences, T]`.
            output: As for `__call__`.

        Returns:
            One piece, or a list if the sequences are several.
        """
        pieces = [_written(self.tokenizer.to_score(ids), output) for ids in outputs["ids"][0]]
        return pieces if len(pieces) > 1 else pieces[0]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Save the model, the tokenizer and the code of all three.

        Args:
            save_directory: A folder, made if need be.
            **kwargs: What the model's `save_pretrained` takes.
        """
        self.model.config.custom_pipelines = CUSTOM_PIPELINES
        self.model.save_pretrained(save_directory, **kwargs)
        # The tokenizer brings the code of the pipeline.
        self.tokenizer.save_pretrained(save_directory)


def _written(score, output: str | os.PathLike):
    """Return a score in the form `output`; see `MidiGenerationPipeline.__call__`."""
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
