"""Charts: pure functions from DataFrames to Plotly figures. No Streamlit here."""
