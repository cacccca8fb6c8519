"""Step 1: csv/ -> processed/arrow/{train,validation,test}."""
