"""Generation of many samples, and numbers with receipts."""
