module kaito.sh/tools/pause

go 1.24.0

tool kaito.sh/tools/pause
