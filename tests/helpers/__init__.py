"""What several tests share: made-up records, tiny cells, files of images."""
