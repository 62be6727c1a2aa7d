# The files of cpp/bind in four, of which each reads Python's and pybind11's headers once: a fifth of
# the time, for a build that is only checked. Two of them have names that others have, and stand alone.
function(thalweg_together)
  get_target_property(sources _core SOURCES)
  list(FILTER sources INCLUDE REGEX "cpp/bind/")
  set(number 0)
  foreach(source IN LISTS sources)
    math(EXPR group "${number} % 4")
    math(EXPR number "${number} + 1")
    if(NOT source MATCHES "/(usual|torch_states)\\.")
      set_source_files_properties(${source} PROPERTIES UNITY_GROUP bind${group})
    endif()
  endforeach()
  set_target_properties(_core PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  target_compile_options(_core PRIVATE -Wno-shadow) # of what another file has
endfunction()
cmake_language(DEFER CALL thalweg_together)
