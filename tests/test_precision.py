"""Bfloat16 is taken where it was faster, not where a processor says it has it."""

import pytest
import torch

from labor_llm import precision
from labor_llm.language.finetune import TrainerSettings


@pytest.fixture
def machine(monkeypatch):
    """Lets a processor claim things and take times."""

    def made(claims, **seconds):
        asked = []
        times = {torch.float32: seconds.get("float32", 1.0), torch.bfloat16: seconds.get("bfloat16", 1.0)}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: claims)
        monkeypatch.setattr(precision, "_seconds", lambda dtype: (asked.append(dtype), times[dtype])[1])
        precision.bfloat16_pays.cache_clear()
        return asked

    yield made
    precision.bfloat16_pays.cache_clear()


@pytest.mark.parametrize(
    ("bfloat16", "taken"), [(0.4, "bf16-mixed"), (0.79, "bf16-mixed"), (0.81, "32-true"), (2.0, "32-true")]
)
def test_auto_takes_what_was_faster(machine, bfloat16, taken):
    machine({"avx512_bf16": True}, bfloat16=bfloat16)
    settings = TrainerSettings(learning_rate=1e-3, accelerator="cpu")
    assert settings.resolved_precision == taken


def test_a_processor_without_bfloat16_is_not_tried(machine):
    asked = machine({"avx512_bf16": False, "avx2": True}, bfloat16=0.1)
    assert not precision.bfloat16_pays()
    assert not asked


def test_it_is_tried_once(machine):
    asked = machine({"amx_bf16": True}, bfloat16=0.1)
    assert precision.bfloat16_pays()
    tried = len(asked)
    assert precision.bfloat16_pays()
    assert len(asked) == tried == 2 * precision.ROUNDS


def test_where_torch_cannot_tell_it_is_not_tried(machine, monkeypatch):
    asked = machine({}, bfloat16=0.1)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not precision.bfloat16_pays()
    assert not asked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_products_that_are_timed_have_the_type_also_in_mixed_precision(monkeypatch, dtype):
    given, linear = [], torch.nn.functional.linear
    monkeypatch.setattr(precision, "linear", lambda *parts: given.append(linear(*parts)))
    with torch.autocast("cpu", torch.bfloat16):
        assert precision._seconds(dtype) > 0
    assert [product.dtype for product in given] == [dtype] * 2
