"""Names that every script knows, in a module that loads no torch."""

DEFAULT_MODEL = "meta-llama/Llama-3.2-1B-Instruct"
DTYPES = ("auto", "float32", "bfloat16", "float16")
