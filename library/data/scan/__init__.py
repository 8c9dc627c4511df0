"""Looking through the folders and files of a data set: which images, with which captions and masks."""
