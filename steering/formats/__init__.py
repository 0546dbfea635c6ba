"""Other tools' files of steering vectors: what they can hold, and what is lost on the way."""
