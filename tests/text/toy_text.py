"""Tiny random text models, a word tokenizer, and pools of them in memory or in folders."""

import random
from copy import deepcopy

import torch
import transformers
from fusion_bench.modelpool import (
    GPT2ForSequenceClassificationPool,
    Seq2SeqLMPool,
    SequenceClassificationModelPool,
)
from omegaconf import OmegaConf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

PAD, CLS, SEP, UNK = "[PAD]", "[CLS]", "[SEP]", "[UNK]"
WORDS = "good bad film plot phone screen who what where is the a of not".split()
CLASSES = {"aa": 2, "bb": 3}  # task -> classes
LONGEST = 16
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
SIZES |= {"num_hidden_layers": 2, "vocab_size": 18, "max_position_embeddings": 20}
QUIET = {"num_workers": 0, "save_model": False, "seed": 0, "guard_every": 0}


def make_tokenizer(pairs: bool = True) -> PreTrainedTokenizerFast:
    """Words as tokens; [CLS] and [SEP] around them only with `pairs`."""
    vocabulary = {w: i for i, w in enumerate([PAD, CLS, SEP, UNK, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if pairs:
        words.post_processor = processors.TemplateProcessing(
            single=f"{CLS} $A {SEP}",
            pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
            special_tokens=[(CLS, 1), (SEP, 2)],
        )
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * pairs
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        unk_token=UNK,
        cls_token=CLS,
        sep_token=SEP,
        model_max_length=LONGEST,
        model_input_names=names,
    )


def sentences(task: str, count: int = 24) -> list[dict]:
    draw = random.Random(task)
    return [
        {
            "text": " ".join(draw.choices(WORDS, k=draw.randint(2, 9))),
            "label": draw.randrange(CLASSES.get(task, 2)),
        }
        for _ in range(count)
    ]


def make_bert(classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.BertConfig(**SIZES, num_labels=classes, pad_token_id=0)
    return transformers.BertForSequenceClassification(config).eval()


def make_roberta(classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.RobertaConfig(
        **SIZES, num_labels=classes, pad_token_id=0, type_vocab_size=2
    )
    return transformers.RobertaForSequenceClassification(config).eval()


def make_gpt2(classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=18,
        n_positions=20,
        n_embd=16,
        n_layer=2,
        n_head=2,
        num_labels=classes,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPT2ForSequenceClassification(config).eval()


def make_t5(classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=18,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def move(model: nn.Module, seed: int, size: float = 0.05) -> nn.Module:
    """Fine-tuning in effect: every parameter a little elsewhere."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(size * torch.randn_like(parameter))
    return model


def family(make, tasks=CLASSES) -> dict[str, nn.Module]:
    """A base, and experts from it with heads of their own."""
    base = make(2, 0)
    made = {"_pretrained_": base}
    for seed, (task, classes) in enumerate(tasks.items(), 1):
        expert = make(classes, seed)
        own = expert.state_dict()
        shared = {
            name: value
            for name, value in base.state_dict().items()
            if own[name].shape == value.shape and not name.startswith(HEADS)
        }
        expert.load_state_dict(own | shared)
        made[task] = move(expert, seed)
    return made


HEADS = ("classifier.", "score.")


def datasets(tasks=CLASSES) -> dict[str, list[dict]]:
    return {task: sentences(task) for task in tasks}


def classification_pool(make=make_bert, **options) -> SequenceClassificationModelPool:
    options = {"tokenizer": make_tokenizer(), "test_datasets": datasets()} | options
    return SequenceClassificationModelPool(family(make), **options)


def seq2seq_pool(**options) -> Seq2SeqLMPool:
    options = {"tokenizer": make_tokenizer(), "test_datasets": datasets()} | options
    return Seq2SeqLMPool(family(make_t5), **options)


def save(models: dict[str, nn.Module], root, tokenizer=None) -> dict[str, str]:
    for name, model in models.items():
        model.save_pretrained(root / name)
    if tokenizer is not None:
        tokenizer.save_pretrained(root / "tokenizer")
    return {name: str(root / name) for name in models}


def configs(folders: dict[str, str], target: str):
    return OmegaConf.create(
        {
            name: {
                "_target_": f"transformers.{target}.from_pretrained",
                "pretrained_model_name_or_path": folder,
            }
            for name, folder in folders.items()
        }
    )


def gpt2_pool(root, models=None, **options) -> GPT2ForSequenceClassificationPool:
    """From folders: upstream can load its classifiers only from such."""
    models = family(make_gpt2) if models is None else models
    folders = save(models, root, make_tokenizer(pairs=False))
    tokenizer = {
        "_target_": "transformers.AutoTokenizer.from_pretrained",
        "pretrained_model_name_or_path": str(root / "tokenizer"),
    }
    options = {"test_datasets": datasets()} | options
    return GPT2ForSequenceClassificationPool(
        OmegaConf.create(tokenizer), models=configs(folders, "GPT2Model"), **options
    )


def copies(state: dict) -> dict:
    return deepcopy(dict(state))


def tokenised(task: str, length: int = 12) -> list[dict]:
    """As FusionBench's GPT-2 datasets are: padded ids, a mask, and labels."""
    tokenizer = make_tokenizer(pairs=False)
    rows = []
    for row in sentences(task):
        made = tokenizer(row["text"], padding="max_length", max_length=length)
        rows.append({**made, "labels": row["label"]})
    return rows
