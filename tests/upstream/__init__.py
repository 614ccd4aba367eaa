"""What transformers' own tests say about GPT-NeoX, stated afresh and asked of both libraries."""
