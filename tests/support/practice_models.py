"""The first model of each practice vendor."""

MODELS = {
    "cerebras": "gpt-oss-120b",
    "groq": "openai/gpt-oss-120b",
    "mistral": "mistral-medium-latest",
    "longcat": "LongCat-2.0",
}
