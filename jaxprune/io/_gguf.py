"""Weights in files that other libraries write, as plain trees of arrays."""

import itertools
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.io._leaves import from_host


class Gguf(NamedTuple):
    """The content of a GGUF file.

    Attributes:
      params: nested dicts and lists of arrays.
      metadata: the numbers, strings and lists that describe the model and its
        tokenizer, by key.
    """

    params: dict[str, Any]
    metadata: dict[str, Any]


def read_gguf(path: str | os.PathLike[str]) -> Gguf:
    """Reads the weights of a GGUF file, the format of llama.cpp.

    Quantized tensors are dequantized to float32. Matrices are ``[outputs, inputs]``, as
    in the file. llama.cpp permutes the rows of the queries and keys of a Llama for its
    own rotary embedding. They are put back in order, so that the embedding rotates the
    first half of a head against the second, as in most libraries. The optional package
    ``gguf`` is needed (``pip install jaxprune[llm]``).

    Args:
      path: where the file is.

    Returns:
      A `Gguf`. Dots in a tensor's name separate the keys of nested dicts, and numbered
      keys become a list: ``blk.0.attn_q.weight`` is
      ``params["blk"][0]["attn_q"]["weight"]``.

    Raises:
      ImportError: if ``gguf`` is not installed.
      FileNotFoundError: if there is no file.
      ValueError: if the file is not a GGUF file, or is truncated.

    Example:
      >>> import jaxprune as jp
      >>> gguf = jp.read_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")  # doctest: +SKIP
      >>> len(gguf.params["blk"])  # doctest: +SKIP
      30
      >>> gguf.params["blk"][0]["ffn_up"]["weight"].shape  # doctest: +SKIP
      (1536, 576)
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        reader = GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is truncated, or not a GGUF file: {error}") from error
    tensors = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        heads = _permuted_heads(tensor.name, metadata)
        tensors[tensor.name] = jnp.array(_in_order(values, heads) if heads else values)
    return Gguf(nested(tensors), metadata)


def read_safetensors(*paths: str | os.PathLike[str]) -> Any:
    """Reads the weights of safetensors files, such as those of the Hugging Face Hub.

    The optional package ``safetensors`` is needed (``pip install jaxprune[llm]``). For
    a folder that `save_model` wrote, use `load_model`.

    Args:
      *paths: where the files are. A model in several parts becomes one tree.

    Returns:
      Nested dicts and lists of arrays. Dots in a tensor's name separate the keys, and
      numbered keys become a list: ``model.layers.0.mlp.up_proj.weight`` is
      ``tree["model"]["layers"][0]["mlp"]["up_proj"]["weight"]``.

    Raises:
      ImportError: if ``safetensors`` is not installed.
      FileNotFoundError: if a file is missing.
      ValueError: if a file is not a safetensors file, two tensors share a name, one's
        name continues another's (``a`` and ``a.b``), or JAX would narrow a tensor
        because ``jax_enable_x64`` is not set.

    Example:
      >>> import jax.numpy as jnp, jaxprune as jp, tempfile
      >>> from safetensors.flax import save_file
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = f"{folder}/model.safetensors"
      ...     save_file({"layers.0.up": jnp.ones(2), "layers.1.up": jnp.zeros(2)}, path)
      ...     jp.read_safetensors(path)["layers"][1]["up"]
      Array([0., 0.], dtype=float32)
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, jax.Array] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"There is no file {path}.")
        try:
            with safe_open(path, "flax") as file:
                for name in file.keys():
                    _check_width(name, file.get_slice(name).get_dtype())
                found = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(
                f"{path} is truncated, or not a safetensors file: {error}"
            ) from error
        if repeated := found.keys() & tensors.keys():
            raise ValueError(f"{path} repeats the tensor {min(repeated)}.")
        tensors.update(found)
    return nested(tensors)


def _check_width(name: str, dtype: str) -> None:
    """Raises if JAX would narrow a tensor, by the dtype's name in the file."""
    wide = {"F64": np.float64, "I64": np.int64, "U64": np.uint64}
    if dtype in wide:
        from_host(name, np.empty(0, wide[dtype]))


def nested(tensors: dict[str, jax.Array]) -> Any:
    """Arrays by dotted names, as nested dicts, with lists for numbered keys."""
    tree: dict[str, Any] = {}
    for name, array in tensors.items():
        *keys, last = name.split(".")
        for outer in itertools.accumulate(keys, lambda a, b: f"{a}.{b}"):
            if outer in tensors:
                raise ValueError(
                    f"There are tensors {outer} and {name}; in a tree, {outer} cannot "
                    "be both an array and a dict."
                )
        node = tree
        for key in keys:
            node = node.setdefault(key, {})
        node[last] = array
    return _with_lists(tree)


def _with_lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if node and node.keys() == {str(i) for i in range(len(node))}:
        return [_with_lists(node[str(i)]) for i in range(len(node))]
    return {key: _with_lists(child) for key, child in node.items()}


def _permuted_heads(name: str, metadata: dict[str, Any]) -> int:
    """How many heads of this tensor llama.cpp permuted; 0 for any other tensor."""
    if metadata.get("general.architecture") != "llama":
        return 0
    queries = metadata["llama.attention.head_count"]
    heads = {
        "attn_q": queries,
        "attn_k": metadata.get("llama.attention.head_count_kv", queries),
    }
    return heads.get(name.split(".")[-2], 0) if name.startswith("blk.") else 0


def _in_order(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's interleaving of the two halves of every head."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
