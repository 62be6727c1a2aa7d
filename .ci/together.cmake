# The files of cpp/bind in four, of which each reads Python's and pybind11's headers once: a third of the
# time, for a build that is only checked. Those of THALWEG_ALONE have names that others have.
function(thalweg_together)
  get_target_property(sources _core SOURCES)
  list(FILTER sources INCLUDE REGEX "cpp/bind/")
  list(FILTER sources EXCLUDE REGEX "/(${THALWEG_ALONE})[.]")
  set(number 0)
  foreach(source IN LISTS sources)
    math(EXPR group "${number} % 4")
    math(EXPR number "${number} + 1")
    set_source_files_properties(${source} PROPERTIES UNITY_GROUP bind${group})
  endforeach()
  set_target_properties(_core PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  target_compile_options(_core PRIVATE -Wno-shadow) # of what another file has
endfunction()
cmake_language(DEFER CALL thalweg_together)
