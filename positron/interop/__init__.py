"""Other people's formats: weights, configurations and tokenizers, written from a run and read into one."""
