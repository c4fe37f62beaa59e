"""Several processes train as one does: the same losses, weights and checkpoints, or a line that says why not."""

from __future__ import annotations

import csv
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mpvg.checkpoint import load_model
from mpvg.cli import main
from mpvg.data.large.order import eval_rows
from mpvg.data.preprocessing import to_tensors
from mpvg.data.sources import load_data, split_validation
from mpvg.errors import UserError
from mpvg.train.data import ImageDataModule
from mpvg.train.module import ImageClassification
from mpvg.train.processes import check_together
from processes import RECIPE
from test_data import save
from test_large import folder

CEIT = ["--model.name=mpvg_ceit_tiny_patch16_224", "--model.arguments={embed_dim: 48, depth: 2, num_heads: 3}"]
RUN = "import sys; from mpvg.cli import main; {}; sys.exit(main(sys.argv[1:]))"
FIRST_PART_FOR_ALL = (
    "import mpvg.train.memory as memory; drawn = memory.epoch_batches;"
    "memory.epoch_batches = lambda *of_set, rank, **options: drawn(*of_set, rank=0, **options)"
)

STOPPED = (
    "from mpvg.train.module import ImageClassification; import test_scale;"
    "ImageClassification.on_train_epoch_start = test_scale.stopped"
)


def stopped(self: Any) -> None:
    if self.current_epoch == 2:
        raise KeyboardInterrupt


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folder(tmp_path / "set")


def words_of(images: Path, out: Path, *options: str) -> list[str]:
    """Return the words of 20 steps of 8 images, in 5 epochs; options that come later count."""
    fixed = ["fit", "--data", str(images), "--img-size=16", "--data.batch_size=8", "--out", str(out)]
    of_trainer = ["--trainer.max_epochs=5", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
    return [*fixed, *of_trainer, *RECIPE, *options]


def alone(words: list[str]) -> None:
    assert main([*words, "--trainer.devices=1"]) == 0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def by_torchrun(rank: int, count: int, port: int) -> dict[str, str]:
    """Return what torchrun tells a process."""
    of_process = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    of_all = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none"}
    return {name: str(value) for name, value in {**of_process, **of_all}.items()}


def by_slurm(rank: int, count: int, port: int) -> dict[str, str]:
    """Return what srun tells a process, each on a node of its own."""
    of_process = {"SLURM_PROCID": rank, "SLURM_LOCALID": 0, "SLURM_NODEID": rank, "SLURM_NTASKS": count}
    of_job = {"SLURM_NTASKS_PER_NODE": 1, "SLURM_NNODES": count, "SLURM_JOB_ID": 4711, "SLURM_JOB_NAME": "train"}
    of_all = {"SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in {**of_process, **of_job, **of_all}.items()}


def together(*words: list[str], told: Any = by_torchrun, change: str = "pass") -> list[tuple[int, str, str]]:
    """Run two processes, each with words of its own or both with the same.

    Returns:
        Of each the exit code, what it printed, and its errors.
    """
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RUN.format(change), *words[rank % len(words)]],
            env={**os.environ, "OMP_NUM_THREADS": "1", **told(rank, 2, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=300) for process in started]
    return [(process.returncode, *said) for process, said in zip(started, ended, strict=True)]


def trained(*words: list[str], strategy: str = "ddp", **options: Any) -> None:
    """Train in two processes, of which the first one speaks."""
    of_trainer = [f"--trainer.strategy={strategy}", "--trainer.devices=2"]
    if options.get("told") is by_slurm:
        of_trainer = [f"--trainer.strategy={strategy}", "--trainer.devices=1", "--trainer.num_nodes=2"]
    first, second = together(*([*of_one, *of_trainer] for of_one in words), **options)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "epoch " in first[1]
    assert second[1] == ""


def columns(out: Path, *names: str) -> dict[str, list[float]]:
    with next(out.glob("csv/*/metrics.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in names}


def content(out: Path) -> Any:
    return torch.load(out / "last.ckpt", weights_only=True)


def assert_same(one: Path, two: Path, *, steps: int = 20) -> None:
    """See that two trainings had the same losses to 1e-5, and end with the same weights, averages and optimiser."""
    first, second = (columns(out, "train/loss", "val/loss", "val/accuracy", "lr") for out in (one, two))
    assert len(first["train/loss"]) == steps
    for name, values in first.items():
        assert second[name] == pytest.approx(values, rel=0, abs=1e-5), name
    ours, theirs = content(one), content(two)
    assert ours["global_step"] == theirs["global_step"] == steps
    assert any(name.startswith("ema.") for name in ours["state_dict"])
    torch.testing.assert_close(dict(theirs["state_dict"]), dict(ours["state_dict"]), rtol=0, atol=1e-4)
    states = [found["optimizer_states"][0] for found in (ours, theirs)]
    torch.testing.assert_close(states[1]["state"], states[0]["state"], rtol=0, atol=1e-4)
    assert [group["params"] for group in states[0]["param_groups"]] == [
        group["params"] for group in states[1]["param_groups"]
    ]


def test_two_processes_train_as_one(images: Path, tmp_path: Path) -> None:
    alone(words_of(images, tmp_path / "one"))
    trained(words_of(images, tmp_path / "two"))
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--data.workers=0"], ["--data.workers=2"]], ids=["memory", "0", "2"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_whatever_reads_the_images(strategy: str, options: list[str], images: Path, tmp_path: Path) -> None:
    alone(words_of(images, tmp_path / "one", *options))
    trained(words_of(images, tmp_path / "two", *options), strategy=strategy)
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_the_wrong_part_of_the_batch_is_seen(images: Path, tmp_path: Path) -> None:
    alone(words_of(images, tmp_path / "one"))
    trained(words_of(images, tmp_path / "two"), change=FIRST_PART_FOR_ALL)
    losses = [columns(tmp_path / out, "train/loss")["train/loss"] for out in ("one", "two")]
    assert abs(losses[0][0] - losses[1][0]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--model.name=mpvg_swin_tiny_patch4_window7_224", "--img-size=32",
         "--model.arguments={embed_dim: 24, depths: [2, 2], num_heads: [2, 4], patch_size: 2, window_size: 4, "
         "drop_path_rate: 0}"],
        ["--model.recipe.trains=head"],
        ["--trainer.gradient_clip_val=0.1", "--model.recipe.layer_decay=0.7"],
    ],
    ids=["swin", "head", "clipped"],
)  # fmt: skip
def test_shards_of_other_trainings(options: list[str], images: Path, tmp_path: Path) -> None:
    options = ["--trainer.max_epochs=2", *options]
    alone(words_of(images, tmp_path / "one", *options))
    trained(words_of(images, tmp_path / "two", *options), strategy="fsdp")
    assert_same(tmp_path / "one", tmp_path / "two", steps=8)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("fsdp", "fsdp"), ("fsdp", "alone"), ("alone", "fsdp"), ("ddp", "fsdp")])
def test_any_number_of_processes_goes_on(first: str, then: str, images: Path, tmp_path: Path) -> None:
    """Stopped after two of three epochs, under one strategy, and gone on with under another."""
    alone(words_of(images, tmp_path / "whole", "--trainer.max_epochs=3"))
    words = words_of(images, tmp_path / "two", "--trainer.max_epochs=3")
    if first == "alone":
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ImageClassification, "on_train_epoch_start", stopped, raising=False)
            assert main([*words, "--trainer.devices=1"]) == 130
    else:
        ended = together([*words, "--trainer.devices=2", f"--trainer.strategy={first}"], change=STOPPED)
        assert ended[0][0] == 130, ended[0][2]
    assert content(tmp_path / "two")["global_step"] == 8
    if then == "alone":
        alone(words)
    else:
        trained(words, strategy=then)
    ours, theirs = (content(tmp_path / out) for out in ("whole", "two"))
    assert ours["global_step"] == theirs["global_step"] == 12
    torch.testing.assert_close(dict(theirs["state_dict"]), dict(ours["state_dict"]), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_mixed_precision_in_shards(images: Path, tmp_path: Path) -> None:
    words = words_of(images, tmp_path / "two", "--trainer.max_epochs=1")
    trained([*words, "--trainer.precision=bf16-mixed"], strategy="fsdp")
    assert {tensor.dtype for tensor in content(tmp_path / "two")["state_dict"].values()} == {torch.float32}
    card, model = load_model(tmp_path / "two" / "last.ckpt")
    assert card.ema
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert main(["test", "--ckpt", str(tmp_path / "two" / "last.ckpt")]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_batch_norms_are_each_process_s_own(strategy: str, images: Path, tmp_path: Path) -> None:
    """As in CeiT's code: training differs from one process's, and the first process's statistics are kept."""
    words = ["--img-size=32", "--trainer.max_epochs=2", *CEIT]
    alone(words_of(images, tmp_path / "one", *words))
    trained(words_of(images, tmp_path / "two", *words), strategy=strategy)
    losses = [columns(tmp_path / out, "train/loss")["train/loss"] for out in ("one", "two")]
    assert abs(losses[0][0] - losses[1][0]) > 1e-4
    ours, theirs = (content(tmp_path / out)["state_dict"] for out in ("one", "two"))
    name = "model.patch_embed.proj.bn.running_mean"
    assert not torch.allclose(ours[name], theirs[name], atol=1e-4)
    kept = columns(tmp_path / "two", "val/loss")["val/loss"][-1]
    card, model = load_model(tmp_path / "two" / "last.ckpt")
    assert card.ema
    _, val = split_validation(load_data(str(images), img_size=32), fraction=0.2, seed=0)
    pixels, labels = to_tensors(val)
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(model(card.preprocessing(pixels)), labels)
    assert kept == pytest.approx(float(loss), abs=1e-5)


def test_accumulated_batches_are_one(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: dict[str, list[float]] = {}
    step = ImageClassification.training_step
    for name, options in {
        "whole": ["--data.batch_size=12"],
        "parts": ["--data.batch_size=3", "--trainer.accumulate_grad_batches=4"],
    }.items():
        of_run = losses.setdefault(name, [])

        def noted(self: Any, batch: Any, batch_idx: int, of_run: list[float] = of_run) -> Any:
            loss = step(self, batch, batch_idx)
            of_run.append(float(loss.detach()))
            return loss

        monkeypatch.setattr(ImageClassification, "training_step", noted)
        alone(words_of(images, tmp_path / name, "--model.recipe.lr_batch=64", *options))
    means = torch.tensor(losses["parts"]).view(-1, 4).mean(dim=1).tolist()
    assert means == pytest.approx(losses["whole"], rel=0, abs=1e-5)
    ours, theirs = (content(tmp_path / name) for name in losses)
    assert ours["global_step"] == theirs["global_step"] == 10  # of 33 images an epoch 9 are left out: no smaller step
    torch.testing.assert_close(dict(theirs["state_dict"]), dict(ours["state_dict"]), rtol=0, atol=1e-4)
    rates = [columns(tmp_path / name, "lr")["lr"] for name in losses]
    assert rates[0] == rates[1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_accumulated_batches_of_two_processes(strategy: str, images: Path, tmp_path: Path) -> None:
    alone(words_of(images, tmp_path / "one", "--trainer.max_epochs=2"))
    parts = ["--trainer.max_epochs=2", "--data.batch_size=4", "--trainer.accumulate_grad_batches=2"]
    trained(words_of(images, tmp_path / "two", *parts), strategy=strategy)
    ours, theirs = (content(tmp_path / out) for out in ("one", "two"))
    assert ours["global_step"] == theirs["global_step"] == 8
    torch.testing.assert_close(dict(theirs["state_dict"]), dict(ours["state_dict"]), rtol=0, atol=1e-4)


def test_more_accumulated_than_there_is(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words_of(images, tmp_path / "out", "--trainer.accumulate_grad_batches=5")) == 2
    assert "5 times 8 images a batch are more than the 33 to train on" in capsys.readouterr().err


def test_unequal_parts_are_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before other processes are started, so that there is one line."""
    odd = words_of(images, tmp_path / "out", "--data.batch_size=7", "--trainer.devices=2", "--trainer.strategy=ddp")
    assert main(odd) == 2
    error = capsys.readouterr().err
    assert "batch_size 7 over 2 processes leaves them unequal parts" in error
    assert "--data.batch_size 6 say" in error
    assert error.count("\n") == 1


def test_a_sweep_is_for_one_process(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of(images, tmp_path / "out", "--trainer.devices=2", "--trainer.strategy=ddp", "--lr=0.001,0.002")
    assert main(words) == 2
    assert "several rates are tried by one process each: name --trainer.devices 1" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 5, 9, 64, 65, 127])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_each_row_is_evaluated_once(count: int, world_size: int, batch_size: int) -> None:
    parts = [eval_rows(count, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [row for part in parts for rows in part for row in rows] == list(range(count))
    assert all(0 < len(rows) <= batch_size for part in parts for rows in part)
    if count >= world_size and batch_size > 1:
        assert len({len(part) for part in parts}) == 1


@pytest.mark.parametrize(
    ("others", "message"),
    [([8, 34], "process 1 would go on from step 8, process 0 from step 0: .* that all machines share"),
     ([0, 30], "process 1 has 30 images to train on, process 0 has 34: .* the same --data")],
)  # fmt: skip
def test_processes_that_do_not_stand_together(others: list[int], message: str) -> None:
    def gathered(here: torch.Tensor) -> torch.Tensor:
        return torch.stack([here, torch.tensor(others)])

    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu"), all_gather=gathered))
    with pytest.raises(UserError, match=message):
        check_together(trainer, step=0, images=34)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.strategy=fsdp", "--trainer.precision=16-mixed"], "16-mixed with fsdp: take bf16-mixed"),
        (["--trainer.strategy=fsdp", "--model.compile=default"], "compile default with fsdp: leave it out"),
        (["--trainer.strategy=fsdp_cpu_offload"], "fsdp_cpu_offload is not supported: name fsdp"),
    ],
)
def test_what_is_not_sharded(options: list[str], message: str, images: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(words_of(images, tmp_path / "out", "--trainer.devices=2", *options)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_that_one_machine_has(images: Path, tmp_path: Path) -> None:
    """Two nodes by srun whose folders are their own: the first goes on, the other would begin."""
    for out in ("here", "there"):
        trained(words_of(images, tmp_path / out, "--trainer.max_epochs=1"), told=by_slurm)
    (tmp_path / "there" / "last.ckpt").unlink()
    words = [words_of(images, tmp_path / out, "--trainer.max_epochs=1") for out in ("here", "there")]
    both = [[*of_one, "--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"] for of_one in words]
    ended = together(*both, told=by_slurm)
    assert [code for code, *_ in ended] == [2, 2]
    for _, _, error in ended:
        assert re.search("process 1 would go on from step 0, process 0 from step 4: they do not see", error)


@pytest.mark.slow
def test_torchrun(images: Path, tmp_path: Path) -> None:
    alone(words_of(images, tmp_path / "one"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]

    def run(*options: str) -> Any:
        words = words_of(images, tmp_path / "two", "--trainer.devices=2", "--trainer.strategy=ddp", *options)
        command = [*torchrun, "-m", "mpvg", *words]
        return subprocess.run(command, timeout=300, text=True, capture_output=True)

    ended = run()
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Next: mpvg test") == 1
    assert_same(tmp_path / "one", tmp_path / "two")
    bad = run("--model.scheme=lape")
    assert bad.returncode != 0
    assert bad.stderr.count("mpvg: ") == 1
    assert "is of another configuration (scheme 'mpvg' there, 'lape' here)" in bad.stderr
    wrong = run("--model.shceme=lape")
    assert wrong.stderr.count("mpvg: option 'model.shceme' is unknown") == 1


def test_an_evaluation_of_fewer_images_than_processes(tmp_path: Path) -> None:
    data = ImageDataModule(save(tmp_path / "set.npz"))
    data.load((8, 8))
    assert data.images is not None
    trainer: Any = SimpleNamespace(world_size=1000)
    data.trainer = trainer
    with pytest.raises(UserError, match="images to evaluate for 1000 processes: take fewer"):
        data.val_dataloader()
