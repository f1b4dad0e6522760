"""Checkpoints: the one that was there stays until the next is whole, whether file or folder."""

import pytest
import torch

from labor_llm.checkpoints import FileOrFolder, existing, named, numbered, read_rest, read_weights


def written(path, step: int) -> dict:
    checkpoint = {
        "state_dict": {"weight": torch.tensor([float(step)])},
        "global_step": step,
        "optimizer_states": [],
    }
    FileOrFolder().save_checkpoint(checkpoint, path)
    return checkpoint


def test_a_file_takes_the_place_of_a_folder(tmp_path):
    last = tmp_path / "last.ckpt"
    last.mkdir()
    (last / "rest.pt").touch()
    written(last, 3)
    assert existing(last) == last
    assert read_rest(last)["global_step"] == 3
    assert read_weights(last)["weight"].tolist() == [3.0]
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("moves", range(4))
def test_there_is_a_checkpoint_whenever_writing_is_cut_short(moves, tmp_path, monkeypatch):
    last, left = tmp_path / "last.ckpt", [moves]

    def cut(method):
        def moved(self, *arguments):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return method(self, *arguments)

        return moved

    last.mkdir()
    torch.save({"global_step": 1}, last / "rest.pt")
    with monkeypatch.context() as patched:
        for name in ("rename", "replace"):
            patched.setattr(f"pathlib.Path.{name}", cut(getattr(type(last), name)))
        if moves < 2:
            with pytest.raises(KeyboardInterrupt):
                written(last, 2)
        else:
            written(last, 2)
    kept = existing(last)
    assert kept is not None
    assert read_rest(kept)["global_step"] == (2 if moves >= 2 else 1)
    written(last, 3)
    assert read_rest(last)["global_step"] == 3


def test_an_optimizers_state_by_name_and_by_number():
    by_name = {
        "state": {"b": {"step": 1}, "a": {"step": 2}},
        "param_groups": [{"lr": 0.1, "params": ["b"]}, {"lr": 0.2, "params": ["a"]}],
    }
    by_number = {
        "state": {0: {"step": 1}, 1: {"step": 2}},
        "param_groups": [{"lr": 0.1, "params": [0]}, {"lr": 0.2, "params": [1]}],
    }
    assert numbered(by_name) == by_number
    assert named(by_number, ["b", "a"]) == by_name
