"""Export a run to the formats of other programs, and import models from them: weights, configuration and tokenizer."""
