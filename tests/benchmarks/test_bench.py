"""The benchmark: its counts against PyTorch's own, its tables, and a whole race of two that is very small."""

import doctest
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5EncoderModel
from transformers import T5Config as TheirT5Config

from benchmarks.bench import __main__ as bench
from benchmarks.bench import commands, devices, growth, kinds, records, report, works
from benchmarks.bench.contenders import CONTENDERS, REFERENCE
from benchmarks.bench.peak import peak_memory
from benchmarks.bench.race import Interrupted, Lap, RaceError, Worker, agree, go_round, race, relative_error
from benchmarks.bench.worker import Task, turn
from minflux.checkpoints.components.clip import write_config as write_clip_config
from minflux.checkpoints.components.flux import write_config as write_flux_config
from minflux.checkpoints.components.t5 import write_config as write_t5_config
from minflux.checkpoints.components.vae import write_config as write_vae_config
from minflux.model import flops
from tests import tiny_model
from tests.compare import operations

ON_CPU = {c.name: c for c in CONTENDERS["cpu"]}
SMALL = works.step("small", works.sized(64, 2, 1, 1), text=3, image=8)


# -- counts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [False, True])
def test_operations_of_a_step_are_those_that_torch_counts(guided):
    cfg = replace(works.sized(64, 2, 2, 3), guidance_embed=guided, vec_in_dim=12, context_in_dim=20)
    module = FluxTransformer2DModel.from_config(write_flux_config(cfg))
    inputs = torch.zeros(2, 9, 64), torch.zeros(2, 5, 20), torch.zeros(2, 12), torch.zeros(2)
    guidance = torch.zeros(2) if guided else None
    theirs = operations(lambda: module(*inputs, torch.zeros(9, 3), torch.zeros(5, 3), guidance))
    assert flops.flux(cfg, text=5, image=9, batch=2) == theirs


def test_operations_of_a_decoding_are_those_that_torch_counts():
    module = AutoencoderKL.from_config(write_vae_config(tiny_model.VAE))
    latents = torch.zeros(2, tiny_model.VAE.z_channels, 3, 5)
    assert flops.vae_decode(tiny_model.VAE, 3, 5, batch=2) == operations(lambda: module.decode(latents))


def test_operations_of_the_text_encoders_are_those_that_torch_counts():
    t5 = T5EncoderModel(TheirT5Config(**write_t5_config(tiny_model.T5))).eval()
    clip = CLIPTextModel(CLIPTextConfig(**write_clip_config(tiny_model.CLIP))).eval()
    ids = torch.ones(2, 7, dtype=torch.long)
    assert flops.t5(tiny_model.T5, 7, batch=2) == operations(lambda: t5(ids))
    assert flops.clip(tiny_model.CLIP, 7, batch=2) == operations(lambda: clip(ids))


def test_operations_of_the_works_add_up():
    by_name = {work.name: work for work in works.on_cpu()}
    gflop = {name: work.flops / 1e9 for name, work in by_name.items()}
    assert [round(gflop[name]) for name in ("S", "M", "L", "VAE256")] == [3, 236, 938, 622]
    assert gflop["product"] == 2 * 2.048**3
    assert gflop["VAE512"] > 4 * gflop["VAE256"]  # the middle's attention grows faster
    assert gflop["import"] == 0
    one_pass = works.work_of_step(by_name["generate"]) / 2
    assert 40 * one_pass < by_name["generate"].flops < 42 * one_pass
    sample = works.work_of_step(by_name["train"]) / by_name["train"].sizes["batch"]
    assert sample < one_pass  # of a shorter text
    assert 3 * 32 * sample < by_name["train"].flops < 3.6 * 32 * sample


# -- sizes -------------------------------------------------------------------------------------------------------


def test_a_gpu_gets_as_many_blocks_as_fit():
    full = works.bytes_of("transformer", works.SCHNELL)
    assert works.deepest(full) == works.SCHNELL
    shallower = works.deepest(full - 1)
    assert (shallower.depth, shallower.depth_single_blocks, shallower.hidden_size) == (18, 36, 3072)
    assert works.bytes_of("transformer", works.deepest(6e9)) <= 6e9
    assert works.deepest(-1).depth == 1
    names = [work.name for work in works.on_gpu(6e9)]
    assert names == ["product", "1024²", "VAE1024", "T5", "CLIP"]


def test_inputs_are_the_same_in_every_process():
    for work in [*works.on_cpu(), SMALL]:
        if work.kind in works.INPUTS:
            first, again = work.inputs(), work.inputs()
            assert all(np.array_equal(first[name], again[name]) for name in first)
            assert {x.dtype for x in first.values()} <= {np.dtype(np.float32), np.dtype(np.int32)}


def test_every_work_of_a_cpu_has_its_reference():
    reference = ON_CPU[REFERENCE["cpu"]]
    assert all(reference.can(work) for work in works.on_cpu())
    assert CONTENDERS["gpu"][1].name == REFERENCE["gpu"]


def test_selecting_keeps_the_reference():
    every, contenders = works.on_cpu(), list(CONTENDERS["cpu"])
    reference = ON_CPU["torch float32"]

    def names(*wanted):
        return [[x.name for x in found] for found in bench.select(list(wanted), every, contenders, reference)]

    assert names() == [[w.name for w in every], [c.name for c in contenders]]
    assert names("s")[0] == ["S"]
    assert names("minflux numpy") == [[w.name for w in every], ["minflux NumPy", "torch float32"]]
    assert names("S", "mflux") == [["S"], ["torch float32", "mflux"]]
    with pytest.raises(SystemExit, match="no work or contender here is called xl"):
        names("S", "XL")


def test_who_is_not_installed_is_said():
    ghost = replace(ON_CPU["mflux"], name="ghost", modules=("numpy", "no_such_module"))
    assert bench.present((ON_CPU["minflux NumPy"], ghost)) == ([ON_CPU["minflux NumPy"]], {"ghost": ["no_such_module"]})


# -- tables ------------------------------------------------------------------------------------------------------


def record(**changes):
    laps = [
        Lap("ours", [0.002, 0.001, 0.004], peak=250_000_000, error=1.5e-6),
        Lap("torch", [0.004, 0.005, 0.003], peak=10**9, error=0.0),
        Lap("late", failure="not ready after 60 s"),
    ]
    work = report.entry(replace(SMALL, sizes=SMALL.sizes | {"batch": 1}), laps) | {"flop": 1e9} | changes
    return {
        "machine": [["processor", "one"], ["memory", "8 GiB"]], "absent": {"ghost": ["ghostly"]},
        "reference": "torch", "peak": 1e12, "works": [work],
    }  # fmt: skip


def test_tables():
    text = report.markdown(record())
    assert text.startswith("processor: one; memory: 8 GiB.\n\nNot here: ghost, for want of ghostly.\n\n")
    assert "| time against torch's | small |\n| --- | --- |\n| ours | 0.50 |\n| torch | 1.00 |\n| late | – |" in text
    assert "| ours | 2 | 1 to 4 | 500 | 50% | 0.25 | 0.50 | 1.5e-06 |" in text
    assert "| torch | 4 | 3 to 5 | 250 | 25% | 1.00 | 1.00 | 0 |" in text
    assert "| late | not ready after 60 s |  |" in text
    assert "small**, one transformer step" in text
    assert "1 GFLOP.\n" in text


def test_the_readme_has_the_ratios_of_steps_and_decoding():
    found = report.briefly({"zen5": record(name="M")})
    assert found[:2] == [["", "processor", "width 1024"], ["ours", "zen5", "0.50"]]
    assert report.briefly({"zen5": record()})[0] == ["", "processor"]  # "small" is none of them


def test_kinds_of_processors_are_side_by_side():
    slower = [Lap("ours", [0.005]), Lap("torch", [0.004]), Lap("theirs", [0.001])]
    other = record(name="S") | {"works": [report.entry(replace(SMALL, name="S"), slower), *record()["works"]]}
    heading, *rows = report.compared({"zen3": record(), "zen5": other})
    assert heading == ["time against torch's", "processor", "small", "S"]
    assert rows == [
        ["ours", "zen3", "0.50", "–"],
        ["ours", "zen5", "0.50", "1.25"],
        ["late", "zen3", "–", "–"],
        ["late", "zen5", "–", "–"],
        ["theirs", "zen5", "–", "0.25"],
    ]


def test_each_kind_of_processor_has_a_name(tmp_path, monkeypatch):
    def cpuinfo(vendor: str, family: int, model: int) -> Path:
        path = tmp_path / "cpuinfo"
        path.write_text(f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\n")
        return path

    assert kinds.processor_kind(cpuinfo("AuthenticAMD", 0x1A, 2)) == "amd-zen5"
    assert kinds.processor_kind(cpuinfo("GenuineIntel", 6, 0x8F)) == "intel-sapphire-rapids"
    monkeypatch.setattr(kinds, "processor", lambda: "Some (R) Processor 9")
    assert kinds.processor_kind(cpuinfo("GenuineIntel", 6, 1)) == "some-r-processor-9"
    assert kinds.processor_kind(tmp_path / "none") == "some-r-processor-9"


def test_a_work_without_a_count_or_a_reference_has_dashes():
    text = report.markdown(record(flop=0, laps=[vars(Lap("ours", [0.002]))]))
    assert "| ours | 2 | 2 to 2 | – | – | 0.00 | – | – |" in text


def test_samples_a_second_are_told_of_training():
    assert "Samples a second: ours 32000, torch 16000." in report.markdown(record(name="train", batch=64))


def test_the_peak_is_the_best_product_in_the_reference_s_precision():
    found = bench.blank("cpu", ON_CPU["torch float32"], {})
    laps = [Lap("minflux NumPy", [2.0]), Lap("minflux MLX", [2.0, 1.0]), Lap("torch bfloat16", [0.1])]
    bench.add(found, works.product(100), laps, ON_CPU["torch float32"])
    assert found["peak"] == 2e6


def test_a_record_joins_those_of_other_kinds_and_devices(tmp_path):
    page, folder = tmp_path / "page.md", tmp_path / "page"
    page.write_text("<!-- cpu: begin --><!-- cpu: end --> and <!-- gpu: begin -->kept<!-- gpu: end -->")
    records.write("zen3", "gpu", 1, folder)
    records.keep("zen3", record() | {"device": "cpu"}, page)
    records.keep("zen5", record() | {"device": "cpu"}, page)
    text = page.read_text()
    assert "| ours | zen3 | 0.50 |\n| ours | zen5 | 0.50 |" in text
    assert text.index("### On zen3") < text.index("### On zen5") < text.index("kept")
    found = records.read_all(folder)
    assert found["zen3"]["gpu"] == 1
    assert found["zen5"]["cpu"]["works"][0]["laps"][0]["seconds"] == [0.002, 0.001, 0.004]


def test_the_committed_page_has_the_figures_of_every_kind():
    page, found = report.PAGE.read_text(), records.read_all()
    assert found
    assert growth.side_by_side(records.part(found, "growth")) in page
    for device in ("cpu", "gpu"):
        of_device = records.part(found, device)
        assert not of_device or report.side_by_side(of_device) in page
        laps = [lap for of in of_device.values() for work in of["works"] for lap in work["laps"]]
        assert not [lap for lap in laps if lap["wrong"]]


def test_examples():
    assert sum(doctest.testmod(module).attempted for module in (flops, kinds, report, works)) == 5


# -- agreement ---------------------------------------------------------------------------------------------------


class Racer:
    """A worker without a process: its result is on disk, its turns take a second."""

    def __init__(self, folder: Path, name: str, result: np.ndarray):
        self.task = Task(replace(ON_CPU["torch float32"], name=name), SMALL, folder, "cpu")
        self.lap = Lap(name)
        np.save(self.task.result, result)

    def run(self):
        self.lap.seconds.append(1.0)


def test_a_wrong_result_is_seen_and_a_right_one_passes(tmp_path):
    x = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    results = {"torch": x, "right": x * (1 + 5e-5), "wrong": x * (1 + 2e-4), "nan": x * np.nan, "short": x[:2]}
    racers = [Racer(tmp_path, name, result) for name, result in results.items()]
    agree(racers, "torch")
    assert [racer.lap.contender for racer in racers if racer.lap.wrong] == ["wrong", "nan", "short"]
    assert racers[1].lap.error == pytest.approx(5e-5, rel=1e-2)
    assert racers[2].lap.failure == "WRONG: 2.0e-04 from torch, allowed 1e-04"


def test_relative_error():
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 3.0])) == pytest.approx(1 / 18**0.5)


def test_rounds_end_early_where_a_work_is_long(tmp_path):
    racers = [Racer(tmp_path, name, np.zeros(1)) for name in "ab"]
    go_round(racers, rounds=9, seconds=3, say=lambda text: None)
    assert [len(racer.lap.seconds) for racer in racers] == [3, 3]
    go_round(racers[:1], rounds=5, seconds=1000, say=lambda text: None)
    assert len(racers[0].lap.seconds) == 8


# -- workers -----------------------------------------------------------------------------------------------------


def test_a_short_run_is_repeated_and_a_long_one_is_not(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = []
    assert turn(lambda: calls.append(1), least=0.5) == 1
    assert len(calls) == 1
    assert turn(lambda: calls.append(1), least=4) == 1
    assert len(calls) == 5


def test_the_peak_of_memory_is_measured():
    before = peak_memory()
    block = np.ones(200_000_000, np.uint8)
    assert peak_memory() - before > 0.9 * block.nbytes or before > 2 * block.nbytes


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops processes")
def test_a_race_of_two(capsys):
    chosen = [ON_CPU["minflux NumPy"], ON_CPU["torch float32"]]
    laps = race(SMALL, chosen, "torch float32", "cpu", 1, 1.0, lambda text: None)
    assert [(lap.contender, len(lap.seconds), lap.failure) for lap in laps] == [
        ("minflux NumPy", 1, ""), ("torch float32", 1, "")
    ]  # fmt: skip
    ours, theirs = laps
    assert 0 < ours.error < 1e-5
    assert theirs.error == 0
    assert all(0 < lap.seconds[0] < 1 for lap in laps)
    assert 2e7 < ours.peak < theirs.peak < 4e9


def test_a_contender_that_fails_says_why_and_the_others_race(capsys):
    broken = replace(SMALL, sizes={"text": 3})
    (lap,) = race(broken, [ON_CPU["minflux NumPy"]], "torch float32", "cpu", 1, 1.0, lambda text: None)
    assert lap.failure == "KeyError: 'image'"
    assert lap.seconds == []


def test_ctrl_c_leaves_what_was_measured(monkeypatch, capsys):
    def interrupted(text):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted) as found:
        race(SMALL, [ON_CPU["minflux NumPy"]], "torch float32", "cpu", 1, 1.0, interrupted)
    assert found.value.laps == []


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops processes")
def test_a_gpu_s_way_is_gone_by_a_stand_in(tmp_path, monkeypatch, capsys):
    """From the command line to the page; the work is small, and the CPU computes what a GPU would."""
    pytest.importorskip("mlx.core")
    page = tmp_path / "page.md"
    page.write_text("<!-- gpu: begin --><!-- gpu: end -->")
    rooms = []
    monkeypatch.setenv(devices.STAND_IN, "cpu")
    monkeypatch.setattr(works, "on_gpu", lambda room: rooms.append(room) or [SMALL])
    monkeypatch.setattr(bench, "keep", lambda kind, record: records.keep(kind, record, page))
    monkeypatch.setattr(bench, "stop_on_sigterm", lambda: None)
    monkeypatch.setitem(CONTENDERS, "gpu", CONTENDERS["gpu"][:2])  # minflux and PyTorch, not compiled
    assert bench.main(["--device", "gpu", "--rounds", "1"]) == 0
    text = page.read_text()
    assert rooms[0] > 0
    assert "| minflux MLX | " in text
    assert re.search(r"\| minflux MLX \| [\d.]+ \|", text[text.index("**small**") :])
    assert "packages" in text
    (kind,) = records.read_all(tmp_path / "page")
    assert kind == kinds.gpu_kind()


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_without_a_stand_in_each_library_is_asked_for_the_device_itself(device, monkeypatch):
    mx, chosen = pytest.importorskip("mlx.core"), []
    monkeypatch.delenv(devices.STAND_IN, raising=False)
    monkeypatch.setattr(mx, "set_default_device", chosen.append)
    devices.choose_for_mlx(device)
    assert chosen == [getattr(mx, device)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.of_torch(device) == {"cpu": "cpu", "gpu": "cuda"}[device]


def test_the_small_model_s_own_step_is_measured_and_mflux_leaves_it_out():
    (work,) = [work for work in works.on_cpu() if work.name == "tiny"]
    assert (work.cfg.hidden_size, work.sizes) == (192, {"text": 64, "image": 64, "batch": 2})
    assert ON_CPU["minflux NumPy"].can(work)
    assert not ON_CPU["mflux"].can(work)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system ends them on Linux")
def test_workers_that_stand_still_end_with_the_race(tmp_path):
    code = (
        "import pathlib, sys, time; from benchmarks.bench.contenders import CONTENDERS;"
        "from benchmarks.bench import works; from benchmarks.bench.race import Task, Worker;"
        "w = Worker(Task(CONTENDERS['cpu'][-1], works.importing(), pathlib.Path(sys.argv[1]), 'cpu'));"
        "w.get_ready(); print(w.process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=report.PAGE.parent.parent, stdout=subprocess.PIPE
    ) as parent:
        worker = int(parent.stdout.readline())
        stopped = comes_to(worker, "T")
        parent.kill()
    assert stopped
    assert comes_to(worker, "Z", "gone")


def comes_to(pid: int, *states: str) -> bool:
    """Wait up to 5 seconds for a process to be in one of the states: a letter of /proc, or gone."""
    status = Path(f"/proc/{pid}/status")
    for _ in range(100):
        state = re.search(r"State:\t(\w)", status.read_text())[1] if status.exists() else "gone"
        if state in states:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.weights
def test_a_command_is_a_job(tmp_path):
    work = works.generating(steps=1)
    job = commands.job(ON_CPU["minflux NumPy"], work, tmp_path, "cpu")
    assert job.result().shape == (128, 128, 3)
    assert job.peak() > 3e7
    assert commands.job(ON_CPU["Python alone"], works.importing(), tmp_path, "cpu").result() == 1


# -- growth ------------------------------------------------------------------------------------------------------


def grown(image: int, batch: int) -> dict:
    """A point that follows the formula: 20 arrays, products at 100 GFLOP/s, 2 ns a logit."""
    point = growth.Point(image, batch, 0, 0.0)
    memory = growth.WEIGHTS + 10**8 + 20 * 4 * point.rows * 1024
    return {**vars(point), "memory": memory, "seconds": point.flops / 1e11 + 2e-9 * point.logits}


def test_the_formula_finds_what_the_figures_follow():
    points = [grown(image, batch) for image, batch in [(256, 1), (1024, 1), (4096, 1), (256, 8)]]
    text = growth.explain("mlx", {"process": 10**8, "points": points})
    assert "100 MB (the process) + 592 MB (weights) + 0 MB (kept) + 20.0 · (B·L·D · 4 bytes);" in text
    assert "products at 100 GFLOP/s + 2.00 ns for each logit" in text
    assert text.count("+0%") + text.count("-0%") == 8
    points[3]["memory"] *= 2
    text = growth.explain("mlx", {"process": 10**8, "points": points})
    assert text.count("+0%") + text.count("-0%") < 8


def test_a_factor_below_nothing_is_left_out():
    terms = np.array([[1.0, 1.0], [2.0, 4.0], [3.0, 9.0]])
    assert growth.fitted(terms, np.array([7.0, 8.0, 9.0]), fixed=5.0) == pytest.approx([1.4, 0], abs=0.2)
    assert growth.fitted(terms, terms @ [2.0, 3.0]) == pytest.approx([2, 3])


def test_growth_is_measured():
    peak, seconds = growth.measure("numpy", growth.BARE)
    assert 2e7 < peak < 1e9
    assert 0 < seconds < 1


def test_a_worker_that_is_late_is_ended():
    worker = Worker.__new__(Worker)
    with subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        worker.process = process
        with pytest.raises(RaceError, match="not ready after 0 s"):
            worker.answer(timeout=0.1)
    assert process.returncode == -signal.SIGKILL
