# What every file of cpp/bind reads, read once: a third less time, and the same bytes, which .ci/wheel
# checks against a build without this.
cmake_language(DEFER CALL target_precompile_headers _core PRIVATE
               "$<$<COMPILE_LANGUAGE:CXX>:<pybind11/pybind11.h$<ANGLE-R>>")
