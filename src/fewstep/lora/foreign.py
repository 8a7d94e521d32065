"""Files that are not LoRAs of Stable Diffusion 1, 2 or XL, known by their keys: other models, other adapters."""

import re
from collections.abc import Callable, Iterable

Shape = tuple[int, ...]

_S = r"[._]"  # between words: kohya writes underscores for dots
MODELS = (  # pattern in a key -> the model that the LoRA is for; the first match counts
    (r"single_stream_blocks|double_stream_blocks", "HiDream"),
    (r"joint_transformer_blocks", "AuraFlow"),
    (r"(img|txt)_mlp[._]fc[12]|token_refiner", "HunyuanVideo"),
    (rf"single_transformer_blocks|(double|single)_blocks{_S}\d+{_S}(img_|txt_|linear|modulation|processor)", "Flux"),
    (rf"transformer_blocks{_S}\d+{_S}(img|txt)_(mod|mlp)", "Qwen-Image"),
    (rf"joint_blocks{_S}\d+", "Stable Diffusion 3"),
    (rf"transformer_blocks{_S}\d+{_S}attn{_S}", "attn"),
    (rf"\bblocks\.\d+\.attn[12]\.|blocks{_S}\d+{_S}(self_attn|cross_attn|ffn){_S}", "Wan"),
    (rf"noise_refiner|context_refiner|layers{_S}\d+{_S}(attention|feed_forward|attn){_S}", "Z-Image or Lumina"),
    (r"lora_prior_|(down|up)_blocks[._]\d+[._]\d+[._](attention|channelwise|depthwise|kv_mapper)", "Stable Cascade"),
    (r"temporal_transformer_block|temporal_res_block|time_mixer|time_stack", "Stable Video Diffusion"),
    (r"temp_attentions|temp_convs", "ModelScope's text-to-video model"),
    (rf"(?<!\d[._])transformer_blocks{_S}\d+{_S}attn[12]{_S}", "attn1"),
    (r"\bmodel\.layers\.\d+\.|\btransformer\.h\.\d+\.|\bbert\.encoder\.", "a language model"),
    (r"\bencoder\.block\.\d+\.layer\.|encoder_block_\d+_layer_", "the text encoder T5"),
)  # fmt: skip
WIDTHS = {  # models that differ only in the width of their attention
    "attn": {1536: "Stable Diffusion 3", 2432: "Stable Diffusion 3.5", 3072: "Flux or Qwen-Image"},
    "attn1": {1152: "PixArt", 2240: "Sana", 2048: "LTX-Video", 1920: "CogVideoX", 3072: "CogVideoX or Mochi"},
}
DOWN = re.compile(
    r"(to_[qkv]|add_[qkv]_proj|qkv)\b.*(lora_A|lora_down|lora\.down)\b"
)  # A of these modules has the attention's width as its inputs
REFUSED = (  # end of a key -> the reason why the file is not a low-rank update that can be added
    (r"\.diff", "it changes whole weights (.diff), without factors"),
    (r"\.diff_b", "it changes biases (.diff_b)"),
    (r"\.[wb]_norm", "it changes norms (LyCORIS' train_norm)"),
    (r"\.lora(_B|_up|\.up|_linear_layer\.up)(\.\w+)?\.bias", "it changes biases (lora_bias)"),
    (r"\.on_input|\.ia3_l(\.\w+)?(\.weight)?", "it is an (IA)3 adapter, which multiplies"),
    (r"\.(boft_[RPs]|boft)(\.\w+)?(\.weight)?", "it is a BOFT adapter, which rotates"),
    (r"\.(oft_blocks|oft_diag|oft_[Rrs])(\.\w+)?(\.weight)?", "it is an OFT adapter, which rotates"),
    (r"\.hra_u(\.\w+)?(\.weight)?", "it is an HRA adapter, which reflects"),
    (r"\.vera_lambda_[bd](\.\w+)?", "it is a VeRA adapter, whose random factors are not in the file"),
    (r"\.[ab][12]\.weight", "it is a GLoRA, which depends on the weights of its model"),
    (r"\.lora_embedding_[AB](\.\w+)?(\.weight)?", "it adapts the embeddings of words"),
    (r"emb_params|string_to_param(\.\*)?|string_to_token(\.\*)?|clip_[lgh]|<[^<>]*>",
     "it is a textual inversion: embeddings of words, not a LoRA"),
    (r".*\.lllite_.*|lllite_.*", "it is a ControlNet-LLLite, not an update of weights"),
    (r".*\.ip_adapter\..*|ip_adapter\..*|image_proj\..*", "it is an IP-Adapter, not an update of weights"),
)  # fmt: skip
WHOLE = re.compile(r".*\.(weight|bias)|.*\.(modules_to_save|original_module)\..*")  # if no part of a LoRA was found
_MODELS = tuple((re.compile(pattern), name) for pattern, name in MODELS)
_ANY_MODEL = re.compile("|".join(f"(?:{pattern})" for pattern, _ in MODELS))
_REFUSED = tuple((re.compile(rf"(.*?)({pattern})", re.DOTALL), reason) for pattern, reason in REFUSED)
LONGEST = 500  # characters of a key that are examined; no known tool writes longer keys


def model_of(keys: Iterable[str], shape_of: Callable[[str], Shape]) -> str | None:
    """The model that the LoRA is for, if most of its keys belong to a known model other than Stable Diffusion.

    None for Stable Diffusion 1, 2 and XL and for unknown models. shape_of: key -> shape of its tensor.
    """
    keys = [key for key in keys if len(key) <= LONGEST]
    found = {key: next(n for sign, n in _MODELS if sign.search(key)) for key in keys if _ANY_MODEL.search(key)}
    if 2 * len(found) <= len(keys):
        return None
    names = list(found.values())
    name = next(
        (known for _, known in MODELS if known in names and known not in WIDTHS), max(set(names), key=names.count)
    )
    if name not in WIDTHS:
        return name
    widths = [shape[1] for key in found if DOWN.search(key) and len(shape := shape_of(key)) > 1]
    return next((WIDTHS[name][width] for width in widths if width in WIDTHS[name]), "another diffusion transformer")


def reason_against(key: str) -> str | None:
    """The reason why a key's tensor cannot be added; None = no reason is known."""
    short = key[-LONGEST:]
    return next((reason for sign, reason in _REFUSED if sign.fullmatch(short)), None)


def is_whole(key: str) -> bool:
    """Whether a key that is not part of a LoRA is a whole weight or bias."""
    return WHOLE.fullmatch(key[-LONGEST:]) is not None
