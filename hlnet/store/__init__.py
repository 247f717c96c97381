"""Networks in files and on the Hugging Face Hub.

names              how a saved model may be named
locate             the file that a name stands for
checkpoint         one safetensors file with everything inside
byte_ranges        parts of a file on the Hub
remote_file        ... read as a safetensors file
model_card         the model card
hub                model folders, and publishing them
export/            networks for other runtimes
"""
