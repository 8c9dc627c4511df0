"""What a person sees of the data: the plan, the report page, previews, the saved file's metadata."""
