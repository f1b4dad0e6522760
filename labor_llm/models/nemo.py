"""NEMO: an LSTM over a career that a representation of the person sets out and accompanies."""

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn

from labor_llm.models.sequence import SequenceModel
from labor_llm.sequences.codes import CodeBook
from labor_llm.sequences.lstm import ContextualLSTM


@dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class Nemo(SequenceModel):
    """Li, Jing, Tong, Yang, He and Chen, "NEMO: Next Career Move Prediction with Contextual Embedding" (2017).

    From the publication: entities are embedded; an encoder turns the embeddings of what is known of the person
    into a context; an LSTM decodes the career from it and predicts the next move. Its persons are LinkedIn members
    with skills, a school and a place, and their moves are pairs of company and title.

    Ours, where that leaves it open or the data differ: careers are occupations alone, so there is one softmax. The
    encoder is one layer with tanh, of the covariates that never change (gender, ethnicity); the context is the
    LSTM's first state and part of its every input, and the cell starts at zero. Covariates that change (year,
    education, region) enter with their record, as a profile of later years would tell the future. Sizes, dropout
    and optimizer are not the publication's: one layer, and the optimizer of the other models here.
    """

    width: int = Field(default=128, ge=1)
    """Numbers of an embedding."""
    state: int = Field(default=256, ge=1)
    """Numbers of the LSTM's state and of the context."""
    dropout: float = Field(default=0.1, ge=0, lt=1)

    def _network(self, book: CodeBook, logits: int) -> nn.Module:
        return ContextualLSTM(book, logits, self.width, self.state, self.dropout)
