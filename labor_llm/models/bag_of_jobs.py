"""Bag of jobs: a linear model of embeddings that forgets the order of all occupations but the last."""

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn

from labor_llm.models.sequence import SequenceModel
from labor_llm.sequences.bag import BagOfJobsNetwork
from labor_llm.sequences.codes import CodeBook


@dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class BagOfJobs(SequenceModel):
    """A baseline of CAREER (arXiv 2202.08370), defined in ``sequences.bag``; region counts as varying here."""

    width: int = Field(default=1024, ge=1)
    """Numbers of an embedding."""

    def _network(self, book: CodeBook, logits: int) -> nn.Module:
        return BagOfJobsNetwork(book, logits, self.width)
