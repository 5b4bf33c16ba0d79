//! Text: tokenizers, conversation templates, stop rules, incremental detokenisation.
