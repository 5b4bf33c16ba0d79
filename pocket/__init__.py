"""Pocket: a small Mini-Gemini, trained from nothing on two cores, and the little world that it knows."""
