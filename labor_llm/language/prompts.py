"""What an off-the-shelf language model is told before a career; a fine-tuned one has learned it.

A prompt is the same for every person and stands before the header, so the text of a career stays a prefix of the
longer one, and one forward pass still serves all of its records. It is made of the same pieces as careers are, so
that titles have the same tokens in it.
"""

from abc import ABC, abstractmethod

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from labor_llm.careers import Careers
from labor_llm.errors import ConfigError
from labor_llm.language.tokens import PROMPT_ANCHOR, CareerEncoder, Ids

SETTINGS = ConfigDict(extra="forbid")
INTRODUCTION = "The job titles are, one per line:\n"
BULLET = "-"


class Prompt(ABC):
    """What stands before every career."""

    name: str

    @abstractmethod
    def ids(self, encoder: CareerEncoder, train: Careers, choice_set: tuple[str, ...]) -> Ids:
        """Its tokens; the encoder has no prompt yet."""

    @property
    def remedy(self) -> str:
        """How it gets shorter."""
        return "Use prompt=plain"


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class PlainPrompt(Prompt):
    """Nothing."""

    name: str = "plain"

    def ids(self, encoder: CareerEncoder, train: Careers, choice_set: tuple[str, ...]) -> Ids:
        return ()


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class TitlesPrompt(Prompt):
    """The titles of the choice set, a line each, in the taxonomy's order."""

    name: str = "titles"

    def ids(self, encoder: CareerEncoder, train: Careers, choice_set: tuple[str, ...]) -> Ids:
        introduction = encoder.encode_after("", [INTRODUCTION])[0]
        bullet = encoder.encode_after(PROMPT_ANCHOR, [BULLET])[0]
        return introduction + tuple(token for code in choice_set for token in bullet + encoder.titles[code])


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class InContextPrompt(Prompt):
    """Whole careers of training persons, footers included, drawn at random: nobody who is predicted is in it.

    A fitted model keeps their tokens, and so these persons' records, in its folder.
    """

    name: str = "in_context"
    careers: int = Field(default=3, ge=1)
    seed: int = Field(default=0, ge=0)
    """Which careers are drawn."""

    def ids(self, encoder: CareerEncoder, train: Careers, choice_set: tuple[str, ...]) -> Ids:
        if self.careers > train.persons:
            raise ConfigError(
                f"prompt.careers must be at most {train.persons}, the number of training persons; "
                f"got {self.careers}"
            )
        persons = train.table["person_id"].unique(maintain_order=True)
        drawn = np.random.default_rng(self.seed).permutation(train.persons)[: self.careers]
        # In the order in which they were drawn: more of them begin with the same ones.
        encoded = [encoder.encode(train.select_persons([person])) for person in persons.gather(drawn)]
        return tuple(token for career in encoded for token in career.ids_T[len(encoder.prefix) :].tolist())

    @property
    def remedy(self) -> str:
        return f"Lower prompt.careers (now {self.careers})"


def check_room(prompt: Prompt, encoder: CareerEncoder, careers: Careers, context: int, backbone: str) -> None:
    """A ConfigError if the prompt leaves no room for a header and one record of one of the careers."""
    told, needed = len(encoder.prompt), encoder.needed(careers)
    if needed > context:
        raise ConfigError(
            f"prompt={prompt.name} has {told} tokens and a header with one record up to {needed - told} more, but "
            f"backbone {backbone!r} reads {context}. {prompt.remedy}, or a backbone with a longer context."
        )
