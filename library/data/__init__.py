"""Images, captions, buckets and batches: everything before the model. No MindSpore here."""
