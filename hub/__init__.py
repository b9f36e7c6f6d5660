"""What leaves the house: the model card and the upload. The only room that talks to the Hugging Face Hub to write."""
