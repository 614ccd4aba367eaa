"""From text to token ids and back, over the Rust ``tokenizers`` library.

``pipeline`` builds and edits the Rust tokenizer; ``settings`` and ``arguments`` check what is
asked for. On them stand ``vocabulary`` (tokens, ids, special tokens), ``decoding`` (ids to text),
``encoding`` (text to ids), which returns a ``batch``, and ``chat``, which writes conversations out
with templates that run in a ``sandbox``. ``training`` learns another vocabulary, ``files`` reads
and writes a directory, and ``fast`` is the class that users construct::

    tokenizer = GPTNeoXTokenizerFast.from_pretrained("EleutherAI/pythia-70m")
    batch = tokenizer(["Hello world", "Hi"], padding=True, return_tensors="pt")
    tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True)
"""

from neox_lab.tokenizer.batch import BatchEncoding, CharSpan, TokenSpan
from neox_lab.tokenizer.fast import GPTNeoXTokenizerFast

__all__ = ["BatchEncoding", "CharSpan", "GPTNeoXTokenizerFast", "TokenSpan"]
