"""From stored runs to tables and figures: select, stats, tables, figures. Reads only; never trains."""
