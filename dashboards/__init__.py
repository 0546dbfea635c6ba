"""Views of a report: figures and one self-contained page. Reads reports, never models; computes no diagnostic."""
