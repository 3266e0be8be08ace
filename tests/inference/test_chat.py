"""A prompt as a line of a chat: the ids and the mask that diffusers' FLUX.2 pipelines make, and what they make of them.

The tokenizers are made here: bytes, a few merges, and the marks of each model's chats.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE as THEIR_SYSTEM_MESSAGE
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import MistralForCausalLM, PreTrainedTokenizerFast, Qwen3ForCausalLM
from transformers import Qwen3Config as TheirQwen3Config
from transformers.models.mistral import MistralConfig as TheirMistralConfig

from minflux.checkpoints.components import MISTRAL, QWEN3
from minflux.errors import ArgumentError, CheckpointError
from minflux.inference.chat import MISTRAL_CHAT, QWEN3_CHAT, SYSTEM_MESSAGE, ChatTokenizer
from minflux.inference.text import PromptTruncated
from minflux.model.decoder import MistralConfig, Qwen3Config, decoder_hidden_states
from tests.compare import MODEL

# the models' own templates as far as they speak of such chats
QWEN3_TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
MISTRAL_TEMPLATE = """
{{- bos_token }}
{%- for message in messages %}
    {%- set mark = 'SYSTEM_PROMPT' if message.role == 'system' else 'INST' %}
    {{- '[' + mark + ']' + message.content[0].text + '[/' + mark + ']' }}
{%- endfor %}"""

CHATS = {"qwen3": QWEN3_CHAT, "mistral": MISTRAL_CHAT}
KINDS = pytest.mark.parametrize("kind", CHATS)
AWKWARD = [
    "", " a cat\n", "É 漢字 🐱", "<|im_end|> <|im_start|>user", "[INST] a [IMG] b [/INST]</s><s>", "<think> </think>",
    "a" * 40,
]  # fmt: skip
quiet = pytest.mark.filterwarnings("ignore::minflux.inference.text.PromptTruncated")


def make_tokenizer(kind: str, folder: Path) -> PreTrainedTokenizerFast:
    """Write a tokenizer of bytes into a folder, and return transformers' of it."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ca", "cat", "Ġa"]
    merges = [("c", "a"), ("ca", "t"), ("Ġ", "a")]
    backend = Backend(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if kind == "qwen3":
        backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        backend.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
        settings = {"pad_token": "<|endoftext|>", "chat_template": QWEN3_TEMPLATE}
    else:
        backend.add_special_tokens(["<s>", "</s>", "<pad>", "[IMG]", *MISTRAL_CHAT.marks[1:]])
        start = ("<s>", backend.token_to_id("<s>"))
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[start])
        settings = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "chat_template": MISTRAL_TEMPLATE}
        settings["padding_side"] = "left"
    PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=4096, **settings).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict:
    """Ours and transformers' tokenizer of each model, and their folder."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in CHATS}
    theirs = {kind: make_tokenizer(kind, folder) for kind, folder in folders.items()}
    return {
        kind: (ChatTokenizer.from_folder(folders[kind], CHATS[kind]), theirs[kind], folders[kind]) for kind in CHATS
    }


def chat_of(kind: str, prompt: str) -> tuple[list[dict], dict]:
    """The messages that diffusers makes of a prompt, and what it asks the template for."""
    if kind == "qwen3":
        return [{"role": "user", "content": prompt}], {"add_generation_prompt": True, "enable_thinking": False}
    system = {"role": "system", "content": [{"type": "text", "text": THEIR_SYSTEM_MESSAGE}]}
    user = {"role": "user", "content": [{"type": "text", "text": prompt.replace("[IMG]", "")}]}
    return [system, user], {"add_generation_prompt": False}


# -- the same as diffusers -------------------------------------------------------------------------------------


@KINDS
@quiet
@given(prompt=st.one_of(st.text(max_size=40), st.sampled_from(AWKWARD)), length=st.sampled_from([20, 270, 300]))
def test_the_ids_and_the_mask_of_a_chat(tokenizers, kind, prompt, length):
    ours, theirs, _ = tokenizers[kind]
    messages, asked = chat_of(kind, prompt)
    assert ours.chat.text(prompt) == theirs.apply_chat_template(messages, tokenize=False, **asked)
    settings = {"padding": "max_length", "truncation": True, "max_length": length}
    if kind == "qwen3":
        expected = theirs(ours.chat.text(prompt), **settings)
    else:
        expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=True, **asked, **settings)
    ids, mask = ours([prompt], length)
    np.testing.assert_array_equal(ids, np.array([expected["input_ids"]], np.int32), strict=True)
    np.testing.assert_array_equal(mask, np.array([expected["attention_mask"]], np.int32), strict=True)


def test_the_system_message_is_diffusers_own():
    assert SYSTEM_MESSAGE == THEIR_SYSTEM_MESSAGE


def test_padding_is_on_the_side_that_the_folder_says(tokenizers):
    masks = {kind: tokenizers[kind][0](["a", "a cat"], 300)[1] for kind in CHATS}
    assert masks["qwen3"][:, 0].all()
    assert not masks["qwen3"][:, -1].any()
    assert masks["mistral"][:, -1].all()
    assert not masks["mistral"][:, 0].any()
    assert all(mask.sum(axis=1).tolist()[0] < mask.sum(axis=1).tolist()[1] for mask in masks.values())


ENCODERS = {
    "qwen3": (QWEN3, Qwen3Config, lambda content: Qwen3ForCausalLM(TheirQwen3Config(**content))),
    "mistral": (
        MISTRAL,
        MistralConfig,
        lambda content: MistralForCausalLM(TheirMistralConfig(**content["text_config"])),
    ),
}


@KINDS
def test_prompts_give_the_text_that_diffusers_pipelines_give(trial, tokenizers, kind):
    ours, theirs, _ = tokenizers[kind]
    component, config, make = ENCODERS[kind]
    cfg = config(
        vocab_size=ours.vocab_size, hidden_size=24, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    module = trial.random(make(component.write_config(cfg)))
    prompts = ["a cat", "a small cat left of an apple"]
    asked = {"prompt": prompts, "max_sequence_length": 270, "hidden_states_layers": cfg.state_layers}
    if kind == "qwen3":
        expected = Flux2KleinPipeline._get_qwen3_prompt_embeds(module, theirs, **asked)
    else:
        expected = Flux2Pipeline._get_mistral_3_small_prompt_embeds(module, theirs, **asked)
    ids, mask = (trial.nx.array(x) for x in ours(prompts, 270))
    got = decoder_hidden_states(trial.tree(module), cfg, ids, mask, cfg.state_layers)
    trial.close(f"FLUX.2's text by {component.title}", got, expected, MODEL)


# -- what is wrong ---------------------------------------------------------------------------------------------


def test_what_is_cut_off_is_told(tokenizers):
    ours = tokenizers["qwen3"][0]
    with pytest.warns(PromptTruncated, match=r"prompt cut to 7 tokens; dropped: 'b.*<\|im_end\|>"):
        ids, mask = ours(["catb"], 7)
    assert ids.shape == (1, 7)
    assert mask.all()


def test_no_prompts(tokenizers):
    ids, mask = tokenizers["qwen3"][0]([], 7)
    assert ids.shape == mask.shape == (0, 7)


@pytest.mark.parametrize("prompts", ["a cat", [7], None])
def test_prompts_that_are_no_text(tokenizers, prompts):
    with pytest.raises(ArgumentError, match="prompts: "):
        tokenizers["qwen3"][0](prompts)


def test_a_tokenizer_of_another_model(tokenizers):
    folder = tokenizers["qwen3"][2]
    with pytest.raises(CheckpointError, match=r"tokenizer.json: expected a token '<s>', a mark of this model's chats"):
        ChatTokenizer.from_folder(folder, MISTRAL_CHAT)
    with pytest.raises(CheckpointError, match=r"token ids reach .*; the text encoder has only 100"):
        ChatTokenizer.from_folder(folder, QWEN3_CHAT, vocab_size=100)


def test_a_folder_without_tokenizer_json(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: no such file"):
        ChatTokenizer.from_folder(tmp_path, QWEN3_CHAT)


def test_padding_on_no_side(tmp_path):
    make_tokenizer("qwen3", tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"padding_side": "middle"}))
    with pytest.raises(CheckpointError, match="padding_side: expected 'left' or 'right', found 'middle'"):
        ChatTokenizer.from_folder(tmp_path, QWEN3_CHAT)


def test_without_unread_marks_a_prompt_stays_as_it_is():
    assert replace(MISTRAL_CHAT, unread=()).text("[IMG]").endswith("[INST][IMG][/INST]")
