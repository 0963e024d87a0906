"""Analysis of tiny models of several kinds: states, logits and exits against the model's own, measures, prediction."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from click.testing import CliRunner  # noqa: E402
from eecompile_training.analyze.analyze import Plan, analyze_files  # noqa: E402
from eecompile_training.analyze.costs import key_values, layer_weights, prices_of_profile, prices_of_target  # noqa: E402
from eecompile_training.analyze.passages import PROMPT, Passage, continuation  # noqa: E402
from eecompile_training.analyze.probes import exit_probes, fit_translators, lenses  # noqa: E402
from eecompile_training.analyze.subject import Subject, open_model  # noqa: E402
from eecompile_training.analyze.table import measure  # noqa: E402

from eecompile.cli import main  # noqa: E402
from eecompile.errors import UsageError  # noqa: E402
from eecompile.runtime.trace import Tracer  # noqa: E402
from eecompile.shapes import HeadShape  # noqa: E402
from eecompile.student.exits import ExitSpec  # noqa: E402
from eecompile.student.student import open_student  # noqa: E402
from eecompile.target import Target, load_target  # noqa: E402

pytestmark = pytest.mark.torch
SIZES = {
    "vocab_size": tiny.VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "eos_token_id": None,
}  # fmt: skip
NARROW = {"vocab_size": tiny.VOCAB, "num_hidden_layers": 4, "hidden_size": 32, "eos_token_id": None}
KINDS: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "gpt2": {"vocab_size": tiny.VOCAB, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256},
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **SIZES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 32,
    },
    "mamba": {**NARROW, "state_size": 8},
    "granite": {**SIZES, "logits_scaling": 3.0},
    "gemma2": {**SIZES, "head_dim": 8, "final_logit_softcapping": 2.0},
    "opt": {
        **NARROW, "ffn_dim": 64, "num_attention_heads": 4, "max_position_embeddings": 256, "word_embed_proj_dim": 32,
    },
}  # fmt: skip
IDS = np.random.default_rng(0).integers(3, tiny.VOCAB, 24).tolist()


def random_model(kind: str) -> Any:
    """A model of this kind whose layers, norms and biases all matter."""
    torch.manual_seed(1)
    settings = {"bos_token_id": 1, "eos_token_id": None, **KINDS[kind]}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **settings)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "A_log" not in name:
                weight.add_(0.15 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, path = np.random.default_rng(5), tmp_path_factory.mktemp("data") / "d.jsonl"
    path.write_text("".join(json.dumps({"ids": rng.integers(3, 128, 20).tolist()}) + "\n" for _ in range(40)))
    return path


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_states_and_logits_are_the_models_own(kind: str) -> None:
    """Whatever the family: states as transformers tells them, and the lens of the last layer is the model's answer."""
    model = random_model(kind)
    subject = Subject(model, kind)
    walked = subject.walk(IDS, range(1, 5))
    with torch.no_grad():
        out = model(torch.tensor([IDS]), output_hidden_states=True, use_cache=False)
    first = 0 if kind == "mamba" else 1  # where transformers has the state after one layer
    for n in range(1, 4):
        torch.testing.assert_close(walked.hidden[n], out.hidden_states[first + n - 1][0])
    expected = out.logits[0].float()
    torch.testing.assert_close(subject.logits(subject.norm(walked.hidden[4])), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(subject.logits(walked.finished), expected, atol=1e-4, rtol=1e-4)
    middle = subject.logits(subject.norm(walked.hidden[2]))
    assert (middle.argmax(-1) != expected.argmax(-1)).any(), "a layer that changes nothing shows nothing"


def test_a_table_holds_what_the_logits_say() -> None:
    """Agreement, probability, KL, loss and cosine of a lens, recomputed from all logits at once, a chunk cut in two."""
    model = random_model("llama")
    subject = Subject(model, "llama")
    table = measure(subject, lenses(subject, [2]), [Passage(IDS, 3), Passage(IDS[:9], 0)], lambda stage: None)
    walked = subject.walk(IDS, [2, 4])
    full = torch.log_softmax(subject.logits(walked.finished), -1)[3:]
    early = torch.log_softmax(subject.logits(subject.norm(walked.hidden[2])), -1)[3:]
    [said], n = table.probes, len(IDS) - 3
    assert table.document.tolist() == [0] * n + [1] * 9
    np.testing.assert_array_equal(said.agrees[:n], (early.argmax(-1) == full.argmax(-1)).numpy())
    np.testing.assert_allclose(said.max_prob[:n], early.max(-1).values.exp(), rtol=1e-4)
    kl = torch.nn.functional.kl_div(early, full, log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(said.kl[:n], kl, rtol=1e-3, atol=1e-5)
    for loss, log_p in ((said.loss, early), (table.loss, full)):
        expected = torch.nn.functional.nll_loss(log_p[:-1], torch.tensor(IDS[4:]), reduction="none")
        np.testing.assert_allclose(loss[: n - 1], expected, rtol=1e-4)
        assert np.isnan(loss[n - 1])


def test_translators_are_the_least_squares_maps_whatever_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """On what it was fitted on a translator is nearer to the last layer than the lens; in groups as at once."""
    from eecompile_training.analyze import probes as module

    subject, rng = Subject(random_model("llama"), "llama"), np.random.default_rng(2)
    passages = [Passage(rng.integers(3, 128, 40).tolist(), 2) for _ in range(12)]
    at_once = fit_translators(subject, [1, 2, 3], passages, lambda stage: None)
    monkeypatch.setattr(module, "_SUMS_BYTES", 1)
    in_groups = fit_translators(subject, [1, 2, 3], passages, lambda stage: None)
    walked = subject.walk(passages[0].ids, [1, 2, 3])
    for one, other in zip(at_once, in_groups, strict=True):
        torch.testing.assert_close(one.ready(walked.hidden[one.layer]), other.ready(walked.hidden[one.layer]))
    table = measure(subject, [*lenses(subject, [2]), at_once[1]], passages, lambda stage: None)
    lens, translated = table.probes
    assert translated.kl.mean() < lens.kl.mean()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with exits of every kind of adapter and head."""
    path = tiny.checkpoint(tmp_path_factory.mktemp("student") / "student", gain=0.5)
    heads = [
        HeadShape(name="thin", kind="low_rank", rank=8, bias=True),
        HeadShape(name="few", kind="shortlist", tokens=list(range(2, 60))),
    ]
    exits = [
        ExitSpec(layer=1, adapter="affine", gates=["max_prob"], head="thin"),
        ExitSpec(layer=2, adapter="layer", gates=["max_prob"], head="few"),
        ExitSpec(layer=3, adapter="mlp", gates=["max_prob"]),
    ]
    return tiny.add_exits(path, exits, heads=heads)


def test_a_students_exits_say_what_its_bundle_says(student: Path, tmp_path: Path) -> None:
    """Agreement and probability of every exit, token for token, against the trace of the compiled bundle."""
    bundle = tiny.open_bundle(tmp_path / "bundle", student)
    trace = Tracer(bundle).trace(IDS)
    subject = Subject(open_model(student), "student")
    probes = exit_probes(subject, open_student(student))
    table = measure(subject, probes, [Passage(IDS, 0)], lambda stage: None)
    assert [p.layer for p in probes] == [1, 2, 3]
    for said, expected in zip(table.probes, trace.exits, strict=True):
        np.testing.assert_allclose(said.max_prob, expected.max_prob, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(said.agrees, expected.token == trace.final.token)
    assert [p.head for p in probes] == [8 * (32 + tiny.VOCAB), 58 * 32, None]
    assert np.isnan(table.probes[1].kl).all()


def test_a_continuation_is_the_models_own_and_its_first_token_is_not_counted(student: Path) -> None:
    subject = Subject(open_model(student), "student")
    found = continuation(subject, Passage(IDS, 5), 9)
    assert found is not None
    assert (found.ids[:5], found.first, len(found.ids)) == (IDS[:5], 5, 5 + 8)
    chosen = subject.logits(subject.walk(found.ids, []).finished).argmax(-1).tolist()
    assert found.ids[5:] == chosen[4:-1], "greedy"
    long = continuation(subject, Passage(IDS * 3, 0), 4)
    assert long is not None
    assert long.first == PROMPT


def test_prices_follow_the_bytes_of_layers_and_the_experts_that_rows_choose() -> None:
    subject, target = Subject(random_model("mixtral"), "mixtral"), load_target("cpu")
    read, active = layer_weights(subject)
    total = sum(p.numel() for p in subject.layers.parameters()) / 4
    experts = 4 * 3 * 32 * 64
    assert active == read(1) == total - experts / 2
    assert read(2) == pytest.approx(total - experts / 4)
    assert read(64) == pytest.approx(total)
    prices = prices_of_target(subject, target)
    assert prices.head(1) == 4 * tiny.VOCAB * 32
    assert prices.layer(1) > 4 * read(1)
    assert (key_values(subject), key_values(Subject(random_model("mamba"), "mamba"))) == (2 * 2 * 8, 0)
    slow = Target.model_validate({**target.model_dump(), "bandwidth": 1e9, "flops": {"fp32": 1e9}, "launch": 0.5})
    priced, keys = prices_of_target(subject, slow), 4 * key_values(subject)
    computed = 2 * 8 * (active + 2 * 4 * 8 * (256 + 8))
    assert priced.layer(8) == pytest.approx((4 * read(8) + keys * (256 + 8) + computed) / 1e9)
    assert priced.full(4) == pytest.approx(3 * 0.5 + 4 * priced.layer(1) + priced.head(1))


def test_prices_of_a_device_are_the_cost_models() -> None:
    """An engine in float16: the longer of bytes and operations, and a price for each kernel."""
    subject, target = Subject(random_model("llama"), "llama"), load_target("jetson-orin")
    prices, (read, active) = prices_of_target(subject, target), layer_weights(subject)
    attended, length = 2 * 4 * 8, 2048 + 64
    moved = 2 * read(1) + 2 * key_values(subject) * length
    assert prices.layer(1) == pytest.approx(moved / (0.8 * 204.8e9) + 10 * 2e-6)
    many = 10**6
    assert prices.layer(many) == pytest.approx(2 * many * (active + attended * length) / (0.8 * 42.5e12) + 10 * 2e-6)
    assert prices.launch == 10e-6
    assert "jetson-orin by its data sheet" in prices.basis


def test_prices_of_a_profile_are_the_measured_ones(student: Path, tmp_path: Path) -> None:
    from eecompile.bundle.write import write_overlay

    path = tiny.bundle_at(tmp_path / "bundle", student)
    subject = Subject(open_model(student), "student")
    with pytest.raises(UsageError, match="no profile"):
        prices_of_profile(subject, path)
    seconds = {**{f"segment_{i}": float(i + 1) for i in range(4)}, "head": 5.0, "embed": 0.0}
    passes = [{"graph": g, "rows": 1, "length": 0, "seconds": s} for g, s in seconds.items()]
    write_overlay(path, "overlays/profile-cpu.json", {"device": "paper", "threads": 1, "passes": passes})
    prices = prices_of_profile(subject, path)
    assert (prices.layer(1), prices.head(3)) == (pytest.approx(10 / 4), 5.0)
    assert prices.weights(tiny.VOCAB * 16, 1) == pytest.approx(2.5)
    other = Subject(open_model(tiny.checkpoint(tmp_path / "other", tiny.config(num_hidden_layers=3))), "other")
    with pytest.raises(UsageError, match="another shape"):
        prices_of_profile(other, path)


def test_a_report_of_several_checkpoints(student: Path, data: Path, tmp_path: Path) -> None:
    """The command, end to end: numbers that hang together, JSON, a picture, and words about what cannot be built."""
    random_model("mamba").save_pretrained(tmp_path / "mamba")
    arguments = ["analyze", str(student), str(tmp_path / "mamba"), "--data", str(data), "--fit", "--continue", "4"]
    done = CliRunner().invoke(
        main, [*arguments, "--limit", "12", "--layers", "1,3", "-o", str(tmp_path / "out"), "--json"]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "out" / "analyze.json").read_text())
    assert (tmp_path / "out" / "analyze.png").read_bytes().startswith(b"\x89PNG")
    one, other = report["checkpoints"]
    assert (one["builds"], other["builds"]) == (True, False)
    assert "mamba" in other["note"]
    assert sorted(one["probes"]) == ["exit", "lens", "translator"]
    for found in report["checkpoints"]:
        for probe in found["probes"].values():
            assert sum(probe["first_agreement"].values()) == pytest.approx(1.0)
            assert 0 <= probe["oracle_skip_at_0"] <= probe["oracle_skip"] < 1
        lens = found["probes"]["lens"]["layers"]
        assert sum(row["information"] for row in lens) == pytest.approx(lens[0]["kl"])
        assert [p["level"] for p in found["predicted"]] == [0.9, 0.95, 0.99, 1.0]
        assert found["verdict"]
    shown = CliRunner().invoke(main, ["analyze", str(student), "--data", str(data), "--limit", "12", "--layers", "2"])
    assert shown.exit_code == 0, shown.output
    assert "agreement" in shown.output
    assert one["verdict"].split(":")[0].split(";")[0][:10] in shown.output


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"layers": [4]}, "not before the last"), ({"alpha": 2.0}, "alpha"), ({"target": "moon"}, "no target")],
)
def test_what_cannot_be_analysed_is_said(student: Path, data: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        analyze_files([student], Plan(**{"data": data, **changes}))


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint"):
        analyze_files([tmp_path], Plan(data))
