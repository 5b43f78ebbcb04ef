"""What a log of trials looks like to a person: plots, and one page that holds everything.

`plots.plot_trials` draws, `page.render_page` writes the page; both are loaded when first asked for.
"""
